"""The adaptive weight: the ratio, its bounds, where gradients are compared, and its value if they cannot be."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine import Ramp
from telecine.objective.adaptive_weight import adaptive_weights, gradient_norms
from telecine.settings import AdaptiveWeightConfig


@pytest.fixture
def other_rank(monkeypatch):
    """Return a function that sets what a second rank has."""

    def set_values(values):
        monkeypatch.setattr(
            "telecine.objective.adaptive_weight.average_over_ranks", lambda x: (x + torch.as_tensor(values)) / 2
        )
        monkeypatch.setattr("telecine.objective.adaptive_weight.num_ranks", lambda: 2)

    return set_values


def layer_norm(loss, weight):
    (norm,) = gradient_norms([loss], weight, at="last_layer")
    return norm


def reconstruction_norm(loss, x):
    (norm,) = gradient_norms([loss], x, at="reconstruction")
    return norm


class TestGradientNorms:
    def test_at_the_last_layer_and_the_graph_is_kept(self):
        w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        loss = (w**2).sum() / 2
        assert layer_norm(loss, w).item() == 5
        assert w.grad is None
        loss.backward()
        assert w.grad.tolist() == [[3.0, 4.0]]

    def test_the_gradient_is_averaged_over_ranks_before_the_norm(self, other_rank):
        other_rank([-3.0, 0.0])
        w = nn.Parameter(torch.tensor([3.0, 4.0]))
        assert layer_norm((w**2).sum() / 2, w).item() == 2

    def test_half_precision_norms_do_not_overflow(self):
        w = nn.Parameter(torch.zeros(100, dtype=torch.float16))
        norm = layer_norm((w * 3e4).sum(), w)
        assert norm.dtype == torch.float32
        assert norm.item() == pytest.approx(3e5, rel=1e-3)

    def test_a_layer_that_the_loss_does_not_depend_on(self):
        w, other = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(1))
        message = r"`last_layer` must be a parameter .*shape \(2, 3\).*decoder.conv_out.weight"
        with pytest.raises(ValueError, match=message):
            layer_norm(other.sum(), w)

    def test_at_the_reconstruction_it_is_that_of_the_mean_over_the_ranks_clips(self, other_rank):
        x = torch.tensor([3.0, 4.0], requires_grad=True)
        loss = (x**2).sum() / 2
        assert reconstruction_norm(loss, x).item() == 5
        other_rank(75.0)
        assert reconstruction_norm(loss, x).item() == 5, "(25 + 75) / 2^2, as each rank has half of the clips"
        assert x.grad is None

    def test_half_precision_squares_do_not_overflow(self):
        x = torch.zeros(4, dtype=torch.float16, requires_grad=True)
        assert reconstruction_norm((x * 3e3).sum(), x).item() == pytest.approx(6e3, rel=1e-3)


def build(**settings):
    """Return the function with these settings."""
    return partial(adaptive_weights, AdaptiveWeightConfig(**settings))


def losses_at_a_tensor():
    """Return a tensor, the references at it, of norms 5 and 10, and losses of norms 2 and 4."""
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    references = {"perceptual": (x**2).sum() / 2, "recon_and_perceptual": (x**2).sum()}
    return x, references, {"discr_3d": x.sum() * 2**0.5, "multiscale_discrs.0": x[0] * 4}


def weights_of(module, at, references, losses):
    return {name: weight.item() for name, weight in module(losses, references, at).items()}


class TestRatio:
    @pytest.mark.parametrize("at", ["last_layer", "reconstruction"])
    @pytest.mark.parametrize(
        ("reference", "expected"),
        [("perceptual", (2.5, 1.25)), ("recon_and_perceptual", (5, 2.5)), ("none", (1, 1))],
    )
    def test_of_each_loss(self, at, reference, expected):
        weights = weights_of(build(at=at, reference=reference), *losses_at_a_tensor())
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
        (weight,) = weights_of(build(**settings), x, {"perceptual": reference * x}, {"discr": loss * x}).values()
        assert weight == pytest.approx(expected)

    def test_it_has_no_graph(self):
        x, references, losses = losses_at_a_tensor()
        assert not any(weight.requires_grad for weight in build()(losses, references, x).values())

    def test_it_is_1_without_gradients_to_compare(self):
        x, references, losses = losses_at_a_tensor()
        detached = {name: value.detach() for name, value in references.items()}
        for at, given in ((None, references), (x, detached), (x.detach(), references)):
            assert weights_of(build(), at, given, losses) == {"discr_3d": 1, "multiscale_discrs.0": 1}
        assert build()({}, references, x) == {}


class TestInTheLoss:
    def run(self, make_loss, make_feature_discriminator, pair, autoencoder, **options):
        options = {"adversarial_loss_weight": 0.5, "discr_3d_kwargs": make_feature_discriminator(), **options}
        loss = make_loss(perceptual={"num_frames": "all"}, **options)
        real = pair[0]
        fake = autoencoder(real)
        total, log = loss(real, fake, 0, 0, last_layer=autoencoder.last_layer)
        frames = [video.transpose(1, 2).flatten(0, 1) for video in (fake, real)]
        lpips = loss.perceptual.distance(reconstruction=frames[0], target=frames[1])
        terms = {"lpips": lpips.mean(), "recon": F.mse_loss(fake, real), "g": -2 * fake.mean()}
        return terms, fake, total, log["train/adaptive_weight"].item()

    @pytest.fixture
    def compute(self, make_loss, make_feature_discriminator, pair, autoencoder):
        return lambda **options: self.run(make_loss, make_feature_discriminator, pair, autoencoder, **options)

    def norm(self, loss, at):
        return torch.autograd.grad(loss, at, retain_graph=True)[0].norm().item()

    def test_compared_with_reconstruction_and_perceptual_loss(self, compute, autoencoder):
        settings = {"reference": "recon_and_perceptual"}
        terms, _, total, weight = compute(adaptive_weight=settings, perceptual_weight=0.3)
        layer = autoencoder.last_layer
        both = terms["recon"] + 0.3 * terms["lpips"]
        assert weight == pytest.approx(self.norm(both, layer) / self.norm(terms["g"], layer), rel=1e-4)
        torch.testing.assert_close(total, both + 0.5 * weight * terms["g"])

    def test_at_the_reconstruction(self, compute):
        terms, fake, _, weight = compute(adaptive_weight={"at": "reconstruction", "min_norm": 1e-9})
        assert weight == pytest.approx(self.norm(terms["lpips"], fake) / self.norm(terms["g"], fake), rel=1e-4)

    @pytest.mark.parametrize("weight", [0, Ramp(1, start=5)])
    def test_without_perceptual_weight_it_is_1_even_if_a_term_uses_the_features(self, compute, weight):
        assert compute(perceptual_weight=weight, terms={"gram": 1})[-1] == 1

    def test_a_sum_over_pixels_is_compared_as_a_sum(self, compute, pair):
        mean = compute(adaptive_weight={"max": 1e9})[-1]
        summed = compute(adaptive_weight={"max": 1e9}, reconstruction={"nll_reduction": "sum"})[-1]
        assert summed == pytest.approx(mean * pair[0][0].numel(), rel=1e-4)

    def test_small_gradients_of_half_precision_are_compared_in_float32(
        self, make_loss, make_feature_discriminator, clip
    ):
        loss = make_loss(
            perceptual={"num_frames": "all"},
            adversarial_loss_weight=1,
            adaptive_weight={"at": "reconstruction", "min_norm": 1e-12},
            discr_3d_kwargs=make_feature_discriminator(1e-4),
        )
        real = clip((1, 3, 4, 64, 64)).half()
        weights = [
            loss(real.to(dtype), (real * 0.99).to(dtype).requires_grad_(), 0, 0)[1]["train/adaptive_weight"].item()
            for dtype in (torch.float16, torch.float32)
        ]
        assert weights[0] == pytest.approx(weights[1], rel=1e-3)

    def test_a_discriminator_scaled_by_8_has_the_same_gradient(self, make_loss, make_discriminator, clip, autoencoder):
        gradients = []
        for scale in (1.0, 8.0):
            options = {"discr_3d_kwargs": make_discriminator(scale), "perceptual": {"num_frames": "all"}}
            loss = make_loss(adversarial_loss_weight=1, **options)
            total, _ = loss(clip(), autoencoder(clip()), 0, 0, last_layer=autoencoder.last_layer)
            gradients.append(torch.autograd.grad(total, autoencoder.last_layer)[0])
        torch.testing.assert_close(*gradients)

    def test_it_is_1_in_every_call_without_gradients_to_compare(self, make_loss, make_discriminator, clip, autoencoder):
        layer = autoencoder.last_layer

        def weight(loss, fake=None, **arguments):
            fake = autoencoder(clip()) if fake is None else fake
            return loss(clip(), fake, 0, 0, **arguments)[1]["train/adaptive_weight"].item()

        def make(scale=1.0, **options):
            return make_loss(adversarial_loss_weight=1, discr_3d_kwargs=make_discriminator(scale), **options)

        loss = make()
        assert weight(loss, last_layer=layer) not in (0, 1)
        assert weight(loss) == 1
        assert weight(loss, last_layer=layer.detach()) == 1
        assert weight(loss, autoencoder(clip()).detach(), last_layer=layer) == 1
        assert weight(make(perceptual_weight=0), last_layer=layer) == 1
        assert weight(make(float("nan")), last_layer=layer) == 1
        with torch.no_grad():
            assert weight(loss, last_layer=layer) == 1


@pytest.mark.parametrize(("layer", "problem"), [(None, "is None"), (torch.ones(3), "requires no gradient")])
def test_without_a_layer_the_weight_is_1_and_a_warning_tells(layer, problem):
    x = torch.ones(3, requires_grad=True)
    losses, references = {"d": (2 * x).sum()}, {"perceptual": x.sum()}
    with pytest.warns(UserWarning, match=f"`last_layer` {problem}, so that the adaptive weight is 1"):
        assert build()(losses, references, layer)["d"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(reference="none")(losses, references, None)
        build()({}, references, None)
        build()(losses, {"perceptual": x.sum().detach()}, None)
