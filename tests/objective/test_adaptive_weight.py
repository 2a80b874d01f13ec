"""The adaptive weight: the ratio, its bounds, where gradients are compared, and its value if they cannot be."""

import warnings
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from telecine import Ramp
from telecine.objective.adaptive_weight import adaptive_weights
from telecine.objective.gradient_probes import TensorProbe
from telecine.settings import AdaptiveWeightConfig


@pytest.mark.parametrize("is_shared", [True, False])
def test_norms_of_half_precision_do_not_overflow(is_shared):
    x = torch.zeros(100, dtype=torch.float16, requires_grad=True)
    (norm,) = TensorProbe(x, is_shared=is_shared).norms([(x * 3e4).sum()])
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(3e5, rel=1e-3)


def build(**settings):
    """Return the function with these settings."""
    return partial(adaptive_weights, AdaptiveWeightConfig(**settings))


def losses_at_a_tensor():
    """Return a tensor, the references at it, of norms 5 and 10, and losses of norms 2 and 4."""
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    references = {"perceptual": (x**2).sum() / 2, "recon_and_perceptual": (x**2).sum()}
    return x, references, {"discr_3d": x.sum() * 2**0.5, "multiscale_discrs.0": x[0] * 4}


def weights_of(module, probe, references, losses):
    return {name: weight.item() for name, weight in module(losses, references, probe).items()}


class TestRatio:
    @pytest.mark.parametrize("at", ["last_layer", "reconstruction"])
    @pytest.mark.parametrize(
        ("reference", "expected"),
        [("perceptual", (2.5, 1.25)), ("recon_and_perceptual", (5, 2.5)), ("none", (1, 1))],
    )
    def test_of_each_loss(self, at, reference, expected):
        x, references, losses = losses_at_a_tensor()
        probe = TensorProbe(x, is_shared=at == "last_layer")
        weights = weights_of(build(at=at, reference=reference), probe, references, losses)
        assert tuple(weights.values()) == pytest.approx(expected)
        assert list(weights) == ["discr_3d", "multiscale_discrs.0"]

    @pytest.mark.parametrize(
        ("settings", "reference", "loss", "expected"),
        [
            ({}, 2.0, 4.0, 0.5),
            ({}, 0.0, 4.0, 0.0),
            ({}, 0.5, 1e-4, 500.0),  # the denominator is at least 1e-3
            ({}, 0.5, 0.0, 500.0),
            ({}, 5.0, 0.0, 1000.0),  # the ratio is at most 1e3
            ({"min_norm": 10.0}, 5.0, 2.0, 0.5),
            ({"max": 2.0}, 5.0, 2.0, 2.0),
            ({}, float("nan"), 1.0, 1.0),
            ({}, 1.0, float("nan"), 1.0),
            ({}, float("inf"), 1.0, 1.0),
            ({}, float("inf"), float("inf"), 1.0),
        ],
    )
    def test_bounds_and_values_that_are_not_finite(self, settings, reference, loss, expected):
        x = torch.ones((), requires_grad=True)
        (weight,) = weights_of(
            build(**settings), TensorProbe(x), {"perceptual": reference * x}, {"discr": loss * x}
        ).values()
        assert weight == pytest.approx(expected)


class TestInTheLoss:
    @pytest.fixture
    def compute(self, make_loss, make_feature_discriminator, pair, autoencoder):
        """Return a function that returns the terms, the total, and the adaptive weight."""

        def compute(**options):
            discriminator = make_feature_discriminator()
            loss = make_loss(
                perceptual={"num_frames": "all"},
                adversarial_loss_weight=0.5,
                discr_3d_kwargs=discriminator,
                **options,
            )
            real = pair[0]
            fake = autoencoder(real)
            total, log = loss(real, fake, 0, 0, last_layer=autoencoder.last_layer)
            fake_frames, real_frames = (
                video.transpose(1, 2).flatten(0, 1) for video in (fake, real)
            )
            lpips = loss.perceptual.distance(reconstruction=fake_frames, target=real_frames).mean()
            terms = {"lpips": lpips, "recon": F.mse_loss(fake, real), "g": -2 * fake.mean()}
            return terms, total, log["train/adaptive_weight"].item()

        return compute

    def test_compared_with_reconstruction_and_perceptual_loss(self, compute, autoencoder):
        settings = {"reference": "recon_and_perceptual"}
        terms, total, weight = compute(adaptive_weight=settings, perceptual_weight=0.3)
        both = terms["recon"] + 0.3 * terms["lpips"]
        reference, adversarial = TensorProbe(autoencoder.last_layer).norms([both, terms["g"]])
        assert weight == pytest.approx((reference / adversarial).item(), rel=1e-4)
        torch.testing.assert_close(total, both + 0.5 * weight * terms["g"])

    @pytest.mark.parametrize("weight", [0, Ramp(1, start=5)])
    def test_without_perceptual_weight_it_is_1_even_if_a_term_uses_the_features(
        self, compute, weight
    ):
        assert compute(perceptual_weight=weight, terms={"gram": 1})[-1] == 1

    def test_a_sum_over_pixels_is_compared_as_a_sum(self, compute, pair):
        mean = compute(adaptive_weight={"max": 1e9})[-1]
        summed = compute(adaptive_weight={"max": 1e9}, reconstruction={"nll_reduction": "sum"})[-1]
        assert summed == pytest.approx(mean * pair[0][0].numel(), rel=1e-4)

    def test_it_is_1_in_every_call_without_gradients_to_compare(
        self, make_loss, make_discriminator, clip, autoencoder
    ):
        layer = autoencoder.last_layer
        fake = autoencoder(clip())

        def weight(fake, last_layer, scale=1.0, **options):
            discriminator = make_discriminator(scale)
            loss = make_loss(adversarial_loss_weight=1, discr_3d_kwargs=discriminator, **options)
            return loss(clip(), fake, 0, 0, last_layer=last_layer)[1][
                "train/adaptive_weight"
            ].item()

        assert weight(fake, layer) not in (0, 1)
        assert weight(fake, None) == 1
        assert weight(fake, layer.detach()) == 1
        assert weight(fake.detach(), layer) == 1
        assert weight(fake, layer, perceptual_weight=0) == 1
        assert weight(fake, layer, scale=float("nan")) == 1
        with torch.no_grad():
            assert weight(fake, layer) == 1


@pytest.mark.parametrize(
    ("probe", "problem"),
    [(None, "is None"), (TensorProbe(torch.ones(3)), "requires no gradient")],
)
def test_without_a_layer_the_weight_is_1_and_a_warning_tells(probe, problem):
    x = torch.ones(3, requires_grad=True)
    losses = {"d": (2 * x).sum()}
    references = {"perceptual": x.sum()}
    with pytest.warns(
        UserWarning, match=f"`last_layer` {problem}, so that the adaptive weight is 1"
    ):
        assert build()(losses, references, probe)["d"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(reference="none")(losses, references, None)
        build()({}, references, None)
        build()(losses, {"perceptual": x.sum().detach()}, None)
