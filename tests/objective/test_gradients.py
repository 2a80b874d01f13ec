"""What each strategy of taking gradients saves. `test_options.py` tests that their values and gradients are equal."""

import weakref

import pytest
import torch
from torch import nn

from telecine.losses import SeparableGANLoss, r1

from .test_gan import wasserstein

PENALTY = {"grad_penalty_loss_weight": 1}
declared = SeparableGANLoss(
    real=lambda real: -real.mean(),
    fake=lambda fake: fake.mean(),
    generator=lambda fake: -fake.mean(),
)


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
            loss.both_losses(*pair, step)
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
