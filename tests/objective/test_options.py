"""Every value of every option is stepped in both steps, forward and backward, in float32 and under bf16 autocast."""

import inspect
from functools import partial
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine import Discriminator3DWithfirstframe, PatchDiscriminator, PatchDiscriminator3D, Ramp, VideoAutoencoderLoss
from telecine.losses import GAN_LOSSES, GRAD_PENALTIES, RECONSTRUCTION_LOSSES, Duel, Penalty, approximate_r1, mse, r1
from telecine.objective.balance import average_over_ranks
from telecine.perceptual import LPIPS

IMAGE = {"dim": 1, "image_size": 16, "linear_attn_heads": 2}
VIDEO = {**IMAGE, "frame_num": 4}
# Every term that the reference has, so that an option which changes one has something to change.
BASE = {
    "disc_start": 0,
    "perceptual_weight": 0.7,
    "adversarial_loss_weight": 0.3,
    "multiscale_adversarial_loss_weight": 0.2,
    "grad_penalty_loss_weight": 1.5,
    "quantizer_aux_loss_weight": 0.9,
    "discr_kwargs": IMAGE,
    "discr_3d_kwargs": VIDEO,
    "multiscale_discr_kwargs": (VIDEO,),
}


def wasserstein(*, real, fake):
    return Duel(discriminator=fake.mean() - real.mean(), generator=-fake.mean())


def frame_distance(*, reconstruction, target):
    return F.l1_loss(reconstruction, target)


class OwnDistance(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, *, reconstruction, target):
        return (self.features(reconstruction) - self.features(target)).square().mean((1, 2, 3))


class OwnJudge(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x).tanh().mean((1, 2, 3, 4))


WEIGHTS = (0, 0.5, Ramp(0.5, steps=2), {"weight": 0.0, "initial": 0.5, "start": 1})
OPTIONS = {
    "disc_start": (0, 2),
    "perceptual_weight": WEIGHTS,
    "adversarial_loss_weight": WEIGHTS,
    "multiscale_adversarial_loss_weight": WEIGHTS,
    "grad_penalty_loss_weight": WEIGHTS,
    "quantizer_aux_loss_weight": WEIGHTS,
    "gram_loss_weight": WEIGHTS,
    "wavelet_loss_weight": WEIGHTS,
    "temporal_loss_weight": WEIGHTS,
    "feature_matching_loss_weight": WEIGHTS,
    "lecam_loss_weight": WEIGHTS,
    "discr_kwargs": (IMAGE, partial(PatchDiscriminator, dim=2)),
    "discr_3d_kwargs": (
        VIDEO,
        {"target": "telecine.PatchDiscriminator3D", "params": {"dim": 2}},
        partial(Discriminator3DWithfirstframe, **VIDEO),
        partial(Discriminator3DWithfirstframe, **VIDEO, time_weighting="frames"),
        partial(PatchDiscriminator3D, dim=2, norm="none"),
        partial(PatchDiscriminator3D, dim=2, norm="spectral"),
        OwnJudge,
    ),
    "multiscale_discr_kwargs": ((VIDEO,), (VIDEO, VIDEO), (partial(PatchDiscriminator, dim=2, num_layers=2),)),
    "recon_loss": ("mse", "l1", "charbonnier", mse),
    "nll_reduction": ("mean", "sum"),
    "learn_logvar": (False, True),
    "logvar_init": (0.0, -1.0),
    "wavelet_levels": (1, 3),
    "perceptual_net": ("vgg", "alex", partial(LPIPS, "alex"), frame_distance, OwnDistance),
    "perceptual_frames": (1, 3, "all"),
    "perceptual_stride": (1, 2),
    "perceptual_chunk_size": (None, 1, 3),
    "gan_loss": ("hinge", "vanilla", "least_squares", "relativistic", wasserstein),
    "lecam_decay": (0.0, 0.999),
    "disc_train_start": (0, 1),
    "grad_penalty": (
        *("one_centered", "r1", "r2", "r1_and_r2", "wgan_gp", "approximate_r1"),
        r1,
        Penalty(
            partial(approximate_r1, sigma=0.1),
            of_real=False,
            of_fake=False,
            double_backward=False,
            sees_fake=False,
        ),
    ),
    "grad_penalty_every": (1, 2),
    "adaptive_weight_reference": ("perceptual", "recon_and_perceptual", "none"),
    "adaptive_weight_at": ("last_layer", "reconstruction"),
    "adaptive_weight_min_norm": (1e-3, 1e-8),
    "adaptive_weight_max": (1e3, 1.0),
    "adaptive_weight_decay": (0.0, 0.9),
    "aux_loss_weights": (None, {"kl_loss": 0.5}, {"codebook_loss": Ramp(1.0, steps=2), "kl_loss": 0}),
    "eager_gradients": (True, False),
    "gradient_checkpointing": (False, True),
    "generator": (None, lambda: torch.Generator().manual_seed(3)),
    "reduce": (average_over_ranks, lambda: lambda tensor: 2 * tensor),
}
# What an option needs that the base does not have.
NEEDS = {
    "wavelet_levels": {"wavelet_loss_weight": 0.5},
    "lecam_decay": {"lecam_loss_weight": 0.5},
    "logvar_init": {"learn_logvar": True},
}
# A discriminator without features cannot be matched; everything else goes with everything.
MODULES = (partial, type)
CASES = [(name, value) for name, values in OPTIONS.items() for value in values]


def is_recipe(name, value):
    """Whether a value has to be made anew for each test: a class, or a function that makes an object."""
    if isinstance(value, MODULES):
        return True
    return name in ("generator", "reduce") and getattr(value, "__name__", "") == "<lambda>"


def made(name, value):
    if isinstance(value, tuple):
        return [made(name, one) for one in value]
    return value() if is_recipe(name, value) else value


def settings(name, value, vgg, lpips):
    """Return the arguments of a case: LPIPS is a narrow one, except where the network is what the case is about."""
    network = {"vgg_weights": vgg} if value == "vgg" else {"perceptual_net": lpips}
    return {**BASE, **network, **NEEDS.get(name, {}), name: made(name, value)}


def literal_values(hint):
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    if get_origin(hint) is None or not (get_origin(hint) is Union or "UnionType" in type(hint).__name__):
        return set()
    return set().union(*(literal_values(part) for part in get_args(hint)))


def test_every_option_has_all_of_its_values_here():
    hints = get_type_hints(VideoAutoencoderLoss.__init__)
    options = set(inspect.signature(VideoAutoencoderLoss).parameters) - {"vgg_weights"}
    assert options == set(OPTIONS)
    num_literals = 0
    for name in options:
        words = literal_values(hints[name])
        num_literals += len(words)
        assert words <= set(value for value in OPTIONS[name] if isinstance(value, str)), name
    assert num_literals == 23
    assert set(RECONSTRUCTION_LOSSES) == literal_values(hints["recon_loss"])
    assert set(GAN_LOSSES) == literal_values(hints["gan_loss"])
    assert set(GRAD_PENALTIES) == literal_values(hints["grad_penalty"])
    assert len(CASES) == 120


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}-{index}" for index, (name, _) in enumerate(CASES)])
def test_it_trains_both_networks(name, value, autocast, vgg, narrow_lpips, cached_weights, autoencoder, clip):
    torch.manual_seed(0)
    loss = VideoAutoencoderLoss(**settings(name, value, vgg, narrow_lpips))
    size = 32 if name == "perceptual_net" else 16
    real = clip((2, 3, 3, size, size))
    # At step 0 what starts late or ramps up is off, and what goes away is on; at step 3 it is the other way round.
    assert sum(both_steps(loss, autoencoder, real, step, autocast) for step in (0, 3)) == 4


def both_steps(loss, autoencoder, real, step, autocast):
    """Run both steps, check what they leave behind, and return how many were run."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fake = autoencoder(real)
        aux = {"kl_loss": autoencoder.encoder.weight.square().mean(), "codebook_loss": 0.1}
        total, log = loss(real, fake, 0, step, aux, autoencoder.last_layer)
    check_finite(total, log)
    parameters = [*autoencoder.parameters(), *loss.get_trainable_autoencoder_parameters()]
    descend(total, parameters)
    assert all(weight.grad is None for weight in loss.get_trainable_parameters())

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, log = loss(real, fake.detach(), 1, step)
    check_finite(total, log)
    if step >= loss.disc_train_start:
        descend(total, loss.get_trainable_parameters())
    return 2


def check_finite(total, log):
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert log
    for name, value in log.items():
        assert value.isfinite(), name
        assert value.dtype == torch.float32, name


def descend(total, parameters):
    """Go one step down, after a look at every gradient."""
    total.backward()
    assert parameters
    for weight in parameters:
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
    assert any((weight.grad != 0).any() for weight in parameters)
    with torch.no_grad():
        for weight in parameters:
            weight -= 1e-3 * weight.grad
            weight.grad = None
