"""How gradients are taken: all strategies have the same values and gradients; what each of them saves."""

import weakref

import pytest
import torch
from torch import nn

from telecine.losses import GAN_LOSSES, GRAD_PENALTIES, GANLoss, GANParts, r1
from telecine.objective.eager import shared_backward

from .test_gan import Independent, discriminator_gradients, wasserstein


class Small(nn.Module):
    """A discriminator with one feature map, of frames or videos."""

    samples_are_independent = True

    def __init__(self, sees="video", *, patches=False):
        super().__init__()
        conv = nn.Conv2d if sees == "frames" else nn.Conv3d
        self.sees, self.patches = sees, patches
        self.conv, self.out = conv(3, 3, 3, padding=1), conv(3, 1, 1)

    def forward(self, x):
        y = self.conv(x).tanh()
        logits = self.out(y)
        return (logits if self.patches else logits.flatten(1).mean(1)), (y,)


def every_network():
    """Return the arguments of discriminators of frames, of videos, and of down-scaled videos."""
    scales = [Small(patches=True), Small("frames")]
    weights = {"adversarial_loss_weight": 0.5, "multiscale_adversarial_loss_weight": 0.25}
    return {"discr_kwargs": Small("frames"), "discr_3d_kwargs": Small(), "multiscale_discr_kwargs": scales, **weights}


NETWORKS = {
    "every": every_network,
    "frames": lambda: {"discr_kwargs": Small("frames"), "adversarial_loss_weight": 0.5},
    "video": lambda: {"discr_3d_kwargs": Small(), "adversarial_loss_weight": 0.5},
    "patches": lambda: {"discr_3d_kwargs": Small(patches=True), "adversarial_loss_weight": 0.5},
}
LOSSES = {**{name: name for name in GAN_LOSSES}, "function": wasserstein}
# Of a loss only its mode counts for a penalty, and of a penalty its needs: hinge is separable, relativistic is not.
CASES = [
    *({"network": "video", "gan": {"loss": loss}} for loss in LOSSES.values()),
    *({"network": "video", "penalty": kind} for kind in GRAD_PENALTIES),
    *(
        {"network": "video", "gan": {"loss": "relativistic"}, "penalty": kind}
        for kind in ("r1", "r1_and_r2", "approximate_r1")
    ),
    *({"network": name, "penalty": "r1"} for name in NETWORKS),
    {"penalty": "r1_and_r2"},
    {"network": "patches", "gan": {"feature_matching_loss_weight": 2.0}},
    {"gan": {"feature_matching_loss_weight": 2.0}},
    {"gan": {"lecam_loss_weight": 0.1}, "penalty": "r1"},
    {"gan": {"window": 2, "augment": ("color", "translation", "cutout")}},
    {"gan": {"feature_matching_loss_weight": 2.0, "loss": "relativistic"}},
    {"gan": {"feature_matching_loss_weight": 2.0, "lecam_loss_weight": 0.1}, "penalty": "wgan_gp"},
    {"gan": {"lecam_loss_weight": {"weight": 0.1, "start": 1}}, "every": 2, "penalty": "r2"},
    {"every": 2, "penalty": "r1"},
    {"disc_start": 1, "penalty": "r1"},
    {"gan": {"disc_train_start": 1}},
    {"gan": {"feature_matching_loss_weight": 2.0}, "adversarial_loss_weight": 0.0, "penalty": "r1"},
]


class TestEagerAndThroughTheGraph:
    """Both ways have the same values, logs, gradients, random numbers and running averages."""

    def results(self, make_loss, real, fake, *, eager, in_update, network="every", penalty=None, every=1, **options):
        torch.manual_seed(0)
        networks = NETWORKS[network]()
        weight = {"grad_penalty_loss_weight": 0.0 if penalty is None else 0.5}
        options = {"perceptual_weight": 0, **weight, **networks, **options, "eager_gradients": eager}
        loss = make_loss(**options, penalty={"kind": penalty or "r1", "every": every}).double()
        generator = torch.Generator().manual_seed(1)
        found = []
        of_steps = {"disc_start", "disc_train_start", "lecam_loss_weight"} & {*options, *options.get("gan", ())}
        for step in range(2 if every > 1 or of_steps else 1):
            fake = fake.detach().requires_grad_()
            hooked = []
            arguments = {"generator": generator, "grad_hook": hooked.append}
            if in_update:
                both = loss.update(real, fake, step, **arguments)
                totals, logs = [both.loss, both.disc_loss], both.log | both.disc_log
            else:
                calls = [loss(real, fake, index, step, **arguments) for index in (0, 1)]
                totals, logs = [total for total, _ in calls], calls[0][1] | calls[1][1]
            for total in totals:
                loss.zero_grad()
                total.backward()
                found.append([total.detach(), *(parameter.grad for parameter in loss.parameters())])
            found.append([fake.grad, *hooked, *(logs[name] for name in sorted(logs)), generator.get_state()])
            found.append(list(loss.state_dict().values()))
        return found

    @pytest.mark.parametrize("in_update", [True, False])
    @pytest.mark.parametrize("case", CASES, ids=[str(index) for index in range(len(CASES))])
    def test_they_are_equal(self, make_loss, clip, case, in_update):
        sees_frames = case.get("network", "every") in ("every", "frames")
        num_frames = 1 if in_update and sees_frames else 3  # an eager update draws one frame for both steps
        real, fake = (clip((2, 3, num_frames, 8, 8), seed=seed, dtype=torch.float64) for seed in (1, 2))
        plain, eager = (
            self.results(make_loss, real, fake, eager=eager, in_update=in_update, **case) for eager in (False, True)
        )
        torch.testing.assert_close(eager, plain, rtol=1e-6, atol=1e-8)


PENALTY = {"grad_penalty_loss_weight": 1}
PARTS = GANParts(real=lambda real: -real.mean(), fake=lambda fake: fake.mean(), generator=lambda fake: -fake.mean())
declared = GANLoss(wasserstein, parts=PARTS)


class Probe(nn.Module):
    """A discriminator that counts its passes and backwards, and notes whether the pass before is still in memory."""

    samples_are_independent = True

    def __init__(self, *, patches=False, independent=True):
        super().__init__()
        self.samples_are_independent = independent
        self.patches = patches
        self.conv = nn.Conv3d(3, 2, 1)
        self.passes, self.backwards, self.kept = 0, 0, []
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
    settings = {"perceptual_weight": 0, "adversarial_loss_weight": 1, "adaptive_weight": {"reference": "none"}}
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


class TestEqual:
    @pytest.mark.parametrize(
        "options", [{}, PENALTY, {"gan": {"loss": "relativistic"}}, {"gan": {"loss": wasserstein}}]
    )
    def test_every_mode_has_the_same_gradients(self, make_loss, pair, options):
        fake = (0.9 * pair[0] + 0.05).requires_grad_()

        def build(**more):
            settings = {"perceptual_weight": 0, "adversarial_loss_weight": 1, **options, **more}
            return make_loss(**settings, discr_3d_kwargs=Independent())

        expected = discriminator_gradients(build(eager_gradients=False), pair[0], fake)
        assert all(gradient.abs().max() > 0 for gradient in expected[0][:2])
        torch.testing.assert_close(discriminator_gradients(build(), pair[0], fake), expected)


class TanhDiscriminator(nn.Module):
    """Discriminates frames (3, 8, 8); adds a fixed bias to each sample's logit."""

    samples_are_independent = True

    def __init__(self, biases):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 1))
        self.biases = torch.tensor(biases)

    def forward(self, x):
        return self.net(x).flatten() + self.biases.to(x.dtype)


def both_gradients(loss, logits, x, parameters, *, others=None, retain_graph=False):
    generator = loss.compute_generator_loss(fake_logits=logits)
    discriminator = loss.compute_discriminator_loss(real_logits=None, fake_logits=logits)
    others = others or [None] * len(parameters)
    return shared_backward(generator, discriminator, logits, x, parameters, retain_graph=retain_graph, add_to=others)


class TestSharedBackward:
    def two_backwards(self, loss, discriminator, x):
        logits = discriminator(x)
        losses = loss(real=logits.detach(), fake=logits)
        (grad_x,) = torch.autograd.grad(losses.generator, x, retain_graph=True)
        return grad_x, torch.autograd.grad(losses.discriminator, list(discriminator.parameters()))

    # Beyond the hinge's margin, as -3 and -9 are, the discriminator's loss has no gradient, the generator's has one.
    @pytest.mark.parametrize("biases", [[0.0, 0.5, 2.0], [0.0, -3.0, -9.0], [-3.0, -9.0, -4.0], [9.0, 40.0, -40.0]])
    @pytest.mark.parametrize("name", ["hinge", "vanilla", "least_squares"])
    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
    def test_both_gradients_are_those_of_two_backwards(self, name, biases, dtype, rtol):
        torch.manual_seed(0)
        discriminator = TanhDiscriminator(biases).to(dtype)
        x = torch.randn(3, 3, 8, 8, dtype=dtype, requires_grad=True)
        parameters = list(discriminator.parameters())
        expected_x, expected = self.two_backwards(GAN_LOSSES[name], discriminator, x)
        grad_x, found = both_gradients(GAN_LOSSES[name], discriminator(x), x, parameters)
        cancelled = rtol * expected_x.abs().max().item()  # elements that are small differences of large ones
        torch.testing.assert_close(grad_x, expected_x, rtol=rtol, atol=cancelled)
        largest = max(gradient.abs().max().item() for gradient in expected)
        assert (largest > 0) == (name != "hinge" or max(biases) > -1)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-10)

    def test_known_gradients_are_added(self):
        discriminator = TanhDiscriminator([0.0, 2.0])
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        parameters = [*discriminator.parameters(), unused := nn.Parameter(torch.ones(2))]
        plain = both_gradients(GAN_LOSSES["hinge"], discriminator(x), x, parameters)[1]
        others = [torch.full_like(parameter, 5.0) for parameter in parameters]
        added = both_gradients(GAN_LOSSES["hinge"], discriminator(x), x, parameters, others=others)[1]
        assert plain[-1] is None
        torch.testing.assert_close(added, [*(gradient + 5 for gradient in plain[:-1]), torch.full_like(unused, 5.0)])

    def test_no_gradient_of_either_loss(self):
        zero = lambda logits: (0 * logits).sum()  # noqa: E731
        constant = GANLoss(wasserstein, parts=GANParts(real=zero, fake=zero, generator=zero))
        discriminator = TanhDiscriminator([0.0, 1.0])
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        grad_x, gradients = both_gradients(constant, discriminator(x), x, list(discriminator.parameters()))
        assert grad_x.eq(0).all()
        assert all(gradient.eq(0).all() for gradient in gradients)

    @pytest.mark.parametrize("retain_graph", [False, True])
    def test_retain_graph(self, retain_graph):
        discriminator = TanhDiscriminator([0.0])
        x = torch.randn(1, 3, 8, 8, requires_grad=True)
        logits = discriminator(x)
        parameters = list(discriminator.parameters())
        both_gradients(GAN_LOSSES["hinge"], logits, x, parameters, retain_graph=retain_graph)
        if retain_graph:
            logits.sum().backward()
            assert x.grad.abs().max() > 0
        else:
            with pytest.raises(RuntimeError, match="second time"):
                logits.sum().backward()
