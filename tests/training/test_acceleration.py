"""Layout and compilation of the objective's networks change results by rounding only."""

import pytest
import torch

from telecine import PatchDiscriminator3D, VideoAutoencoderLoss
from telecine.training.acceleration import accelerate_networks, networks

VIDEO = {"dim": 2, "image_size": 16, "frame_num": 2, "linear_attn_heads": 2}


def build(**options):
    torch.manual_seed(0)
    return VideoAutoencoderLoss(
        0,
        **{"adversarial_loss_weight": 1, "discr_3d_kwargs": VIDEO, **options},
        adaptive_weight={"at": "reconstruction"},
    )


def figures(loss):
    """Return losses and gradients of two updates; a fixed seed draws the same frames."""
    torch.manual_seed(1)
    real = torch.rand(2, 3, 2, 16, 16) * 2 - 1
    results = []
    for step in range(2):
        fake = (0.5 * real).requires_grad_()
        both = loss.update(real, fake, step)
        both.loss.backward()
        both.disc_loss.backward()
        results += [both.loss, both.disc_loss, fake.grad, *(w.grad for w in loss.get_trainable_parameters())]
        loss.zero_grad()
    return results


def patches():
    """Return a discriminator that is traced in a fraction of the time."""
    torch.manual_seed(0)
    return PatchDiscriminator3D(dim=2, num_layers=2, num_temporal_layers=1)


@pytest.mark.parametrize(
    ("make_discriminator", "options"),
    [
        (VIDEO.copy, {"channels_last": True, "dynamo_backend": "no"}),
        pytest.param(patches, {"channels_last": False, "dynamo_backend": "eager"}, marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_are_the_same(cached_weights, make_discriminator, options):
    plain, loss = (build(discr_3d_kwargs=make_discriminator()) for _ in range(2))
    accelerate_networks(loss, **options, device=torch.device("cpu"))
    torch.testing.assert_close(figures(loss), figures(plain), rtol=1e-3, atol=1e-5)
    weights = [*loss.parameters(), *loss.perceptual.distance.distance.module.values()]
    laid_out = [w for w in weights if w.ndim == 4 and w.is_contiguous(memory_format=torch.channels_last)]
    laid_out += [w for w in weights if w.ndim == 5 and w.is_contiguous(memory_format=torch.channels_last_3d)]
    assert (len(laid_out) == len([w for w in weights if w.ndim > 3])) == options["channels_last"]
    compiled = [network._compiled_call_impl is not None for network in networks(loss)]
    assert compiled == [options["dynamo_backend"] != "no"] * 2


@pytest.mark.slow
def test_an_exact_penalty_is_refused(cached_weights):
    exact = build(grad_penalty_loss_weight=1)
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"`channels_last` must be false on the CPU .*approximate_r1"):
        accelerate_networks(exact, channels_last=True, dynamo_backend="no", device=cpu)
    with pytest.raises(ValueError, match=r"`dynamo_backend` must be no with an exact .*approximate_r1"):
        accelerate_networks(exact, channels_last=False, dynamo_backend="aot_eager", device=cpu)
    approximate = build(grad_penalty_loss_weight=1, penalty={"kind": "approximate_r1"})
    accelerate_networks(approximate, channels_last=True, dynamo_backend="no", device=cpu)
    assert all(torch.isfinite(figure).all() for figure in figures(approximate))
