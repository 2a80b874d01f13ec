"""What each strategy of taking gradients saves. `test_options.py` tests that their values and gradients are equal."""

import weakref

import pytest
import torch
from torch import nn

from telecine.losses import GAN_LOSSES, GANLoss, GANParts, r1
from telecine.objective.early_gradients import GradientSum
from telecine.objective.shared_backward import shared_backward

from .test_gan import wasserstein

PENALTY = {"grad_penalty_loss_weight": 1}
PARTS = GANParts(
    real=lambda real: -real.mean(),
    fake=lambda fake: fake.mean(),
    generator=lambda fake: -fake.mean(),
)
declared = GANLoss(wasserstein, parts=PARTS)


class Probe(nn.Module):
    """A discriminator that counts its passes and backwards, and notes whether the pass before is still in memory."""

    samples_are_independent = True

    def __init__(self, *, patches=False, independent=True):
        super().__init__()
        self.samples_are_independent = independent
        self.patches = patches
        self.conv = nn.Conv3d(3, 2, 1)
        self.passes = 0
        self.backwards = 0
        self.kept = []
        self.before = lambda: None

    def forward(self, x):
        self.passes += 1
        self.kept.append(self.before() is not None)
        saved = self.conv(x)
        self.before = weakref.ref(saved)
        y = saved * saved
        if y.requires_grad:
            y.register_hook(self.count)
        logits = y.mean(1)
        return (logits if self.patches else logits.flatten(1).mean(1)), (y,)

    def count(self, gradient):
        self.backwards += 1


def probe(make_loss, pair, *, step=0, autocast=None, networks=None, in_update=True, **options):
    """Return a discriminator after an update, or after the discriminators' step alone."""
    discriminator = Probe(**networks or {})
    settings = {
        "perceptual_weight": 0,
        "adversarial_loss_weight": 1,
        "adaptive_weight": {"reference": "none"},
    }
    loss = make_loss(**{**settings, "discr_3d_kwargs": discriminator, **options})
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        if in_update:
            loss.update(*pair, step)
        else:
            loss(*pair, 1, step)
    return discriminator


class TestPasses:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, 2),  # reconstructions once, real clips once
            (PENALTY, 2),
            ({"gan": {"loss": "vanilla"}}, 2),
            ({"gan": {"loss": declared}}, 2),
            ({**PENALTY, "penalty": {"kind": r1}}, 2),  # a function without a parameter of fakes
            ({"penalty": {"kind": "r2"}}, 2),  # it is off
            ({"gan": {"lecam_loss_weight": {"weight": 1, "start": 2}}}, 2),
            ({**PENALTY, "penalty": {"kind": "r2", "every": 2}, "step": 1}, 2),
            ({"autocast": torch.bfloat16}, 2),
            # another pass of the reconstructions
            ({"eager_gradients": False}, 3),
            ({"gan": {"lecam_loss_weight": 1}}, 3),
            ({**PENALTY, "penalty": {"kind": "r2"}}, 3),
            ({"autocast": torch.bfloat16, **PENALTY}, 3),  # the penalty needs float32
            ({"autocast": torch.float16}, 3),
            # and another one of the real clips
            ({"gan": {"loss": "relativistic"}}, 4),
            ({"gan": {"loss": wasserstein}}, 4),
            ({"gan": {"feature_matching_loss_weight": 1}}, 3),
            ({"gan": {"disc_train_start": 1}}, 1),
            ({"disc_start": 1}, 2),
        ],
    )
    def test_in_an_update(self, make_loss, pair, options, expected):
        assert probe(make_loss, pair, **options).passes == expected

    def test_of_a_frozen_autoencoder(self, make_loss, pair):
        assert probe(make_loss, (pair[0], pair[1].detach())).passes == 3

    @pytest.mark.parametrize(
        ("options", "is_freed"),
        [
            ({}, True),
            (PENALTY, True),
            ({**PENALTY, "autocast": torch.float16}, True),  # a double backward runs in float32
            ({"gan": {"loss": declared}}, True),
            ({"gan": {"loss": "relativistic"}}, False),
            ({**PENALTY, "penalty": {"kind": "r2"}}, False),
            ({"gan": {"lecam_loss_weight": 1}}, False),
            ({"eager_gradients": False}, False),
            ({"autocast": torch.float16}, False),
        ],
    )
    def test_the_graph_of_the_real_clips_is_freed_first(self, make_loss, pair, options, is_freed):
        assert probe(make_loss, pair, in_update=False, **options).kept == [False, not is_freed]

    @pytest.mark.parametrize(
        ("options", "networks", "expected"),
        [
            ({}, {}, 2),
            ({"gan": {"feature_matching_loss_weight": 1}}, {}, 3),
            ({}, {"patches": True}, 3),  # a sample has several logits
            ({}, {"independent": False}, 3),
            ({"disc_start": 1}, {}, 2),
        ],
    )
    def test_one_backward_serves_both_steps(self, make_loss, pair, options, networks, expected):
        """Beside the one of the real clips."""
        assert probe(make_loss, pair, networks=networks, **options).backwards == expected


class TanhDiscriminator(nn.Module):
    """Discriminates frames (3, 8, 8); adds a fixed bias to each sample's logit."""

    samples_are_independent = True

    def __init__(self, biases):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 1))
        self.biases = torch.tensor(biases)

    def forward(self, x):
        return self.net(x).flatten() + self.biases.to(x.dtype)


def both_gradients(loss, logits, x, parameters, *, others=None):
    generator = loss.compute_generator_loss(fake_logits=logits)
    discriminator = loss.compute_discriminator_loss(real_logits=None, fake_logits=logits)
    gradient_sum = GradientSum(parameters)
    gradient_sum.gradients = others or gradient_sum.gradients
    grad_x = shared_backward(generator, discriminator, logits, x, gradient_sum, retain_graph=False)
    return grad_x, gradient_sum.gradients


class TestSharedBackward:
    def two_backwards(self, loss, discriminator, x):
        logits = discriminator(x)
        losses = loss(real=logits.detach(), fake=logits)
        (grad_x,) = torch.autograd.grad(losses.generator, x, retain_graph=True)
        return grad_x, torch.autograd.grad(losses.discriminator, list(discriminator.parameters()))

    # Beyond the hinge's margin, as -3 and -9 are, the discriminator's loss has no gradient, the generator's has one.
    @pytest.mark.parametrize(
        "biases", [[0.0, 0.5, 2.0], [0.0, -3.0, -9.0], [-3.0, -9.0, -4.0], [9.0, 40.0, -40.0]]
    )
    @pytest.mark.parametrize("name", ["hinge", "vanilla", "least_squares"])
    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
    def test_both_gradients_are_those_of_two_backwards(self, name, biases, dtype, rtol):
        torch.manual_seed(0)
        discriminator = TanhDiscriminator(biases).to(dtype)
        x = torch.randn(3, 3, 8, 8, dtype=dtype, requires_grad=True)
        parameters = list(discriminator.parameters())
        expected_x, expected = self.two_backwards(GAN_LOSSES[name], discriminator, x)
        grad_x, gradients = both_gradients(GAN_LOSSES[name], discriminator(x), x, parameters)
        cancelled = (
            rtol * expected_x.abs().max().item()
        )  # elements that are small differences of large ones
        torch.testing.assert_close(grad_x, expected_x, rtol=rtol, atol=cancelled)
        largest = max(gradient.abs().max().item() for gradient in expected)
        assert (largest > 0) == (name != "hinge" or max(biases) > -1)
        torch.testing.assert_close(gradients, list(expected), rtol=rtol, atol=1e-10)

    def test_gradients_of_the_real_part_are_added(self):
        discriminator = TanhDiscriminator([0.0, 2.0])
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        unused = nn.Parameter(torch.ones(2))
        parameters = [*discriminator.parameters(), unused]
        plain = both_gradients(GAN_LOSSES["hinge"], discriminator(x), x, parameters)[1]
        others = [torch.full_like(parameter, 5.0) for parameter in parameters]
        added = both_gradients(GAN_LOSSES["hinge"], discriminator(x), x, parameters, others=others)[
            1
        ]
        assert plain[-1] is None
        torch.testing.assert_close(
            added, [*(gradient + 5 for gradient in plain[:-1]), torch.full_like(unused, 5.0)]
        )

    def test_no_gradient_of_either_loss(self):
        def zero(logits):
            return (0 * logits).sum()

        constant = GANLoss(wasserstein, parts=GANParts(real=zero, fake=zero, generator=zero))
        discriminator = TanhDiscriminator([0.0, 1.0])
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        grad_x, gradients = both_gradients(
            constant, discriminator(x), x, list(discriminator.parameters())
        )
        assert grad_x.eq(0).all()
        assert all(gradient.eq(0).all() for gradient in gradients)
