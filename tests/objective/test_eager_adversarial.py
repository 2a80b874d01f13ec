"""Eager adversarial losses equal the plain ones; the gradient mode of each situation; the shared backward."""

import pytest
import torch
from torch import nn

from telecine import Discriminator, PatchDiscriminator
from telecine.losses import GAN_LOSSES, GRAD_PENALTIES, gan_loss, r1
from telecine.objective.adversarial import AdversarialLosses
from telecine.objective.batch import make_batch
from telecine.objective.eager import _cotangents, shared_backward
from telecine.objective.eager_adversarial import EagerAdversarialLosses, _can_share_backward, _GradientMode

from .test_adversarial import VIDEO, Independent, discriminator_gradients, wasserstein


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


class TestPlainAndEager:
    """Both kinds of losses have the same values, logs, gradients, random numbers and running averages."""

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

    def test_which_of_them_a_call_uses(self, make_loss, pair):
        for eager, expected in ((False, AdversarialLosses), (True, EagerAdversarialLosses)):
            loss = make_loss(perceptual_weight=0, discr_3d_kwargs=Small(), eager_gradients=eager)
            batch = make_batch(loss.config, *pair, None, None)
            assert type(loss._adversarial(batch, loss.schedule.at(0), both_steps=True)) is expected


@gan_loss(is_separable=True, uses_real=False)
def declared(*, real, fake):
    return wasserstein(real=real, fake=fake)


GRAPH, JOINT, SPLIT, SHARED = _GradientMode
PENALTY = {"grad_penalty_loss_weight": 1}


class TestGradientMode:
    def modes(self, make_loss, pair, *, step=0, autocast=None, discriminator=None, **options):
        """Return the modes of the discriminators' step and of an update."""
        discriminator = discriminator or Independent()
        loss = make_loss(
            **{"perceptual_weight": 0, "adversarial_loss_weight": 1, "discr_3d_kwargs": discriminator, **options}
        )
        batch = make_batch(loss.config, *pair, None, None)
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            found = [loss._adversarial(batch, loss.schedule.at(step), both_steps=each) for each in (False, True)]
            return tuple(each.mode if isinstance(each, EagerAdversarialLosses) else GRAPH for each in found)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, (SPLIT, SHARED)),
            (PENALTY, (SPLIT, SHARED)),
            ({"disc_start": 9}, (SPLIT, SHARED)),
            ({"gan": {"loss": "vanilla"}}, (SPLIT, SHARED)),
            ({"gan": {"loss": declared}}, (SPLIT, SHARED)),
            ({**PENALTY, "penalty": {"kind": "approximate_r1"}}, (SPLIT, SHARED)),
            # the discriminators do not train
            ({"gan": {"disc_train_start": 1}}, (SPLIT, SPLIT)),
            # one part depends on the other
            ({"gan": {"loss": "relativistic"}}, (JOINT, JOINT)),
            ({"gan": {"loss": wasserstein}}, (JOINT, JOINT)),
            ({"gan": {"lecam_loss_weight": 0.1}}, (JOINT, JOINT)),
            ({**PENALTY, "penalty": {"kind": "r2"}}, (JOINT, JOINT)),
            ({**PENALTY, "penalty": {"kind": "wgan_gp"}}, (JOINT, JOINT)),
            ({**PENALTY, "penalty": {"kind": r1}}, (JOINT, JOINT)),  # a function that declares nothing
            # it is off
            ({"penalty": {"kind": "r2"}}, (SPLIT, SHARED)),
            ({"eager_gradients": False}, (GRAPH, GRAPH)),
            ({"eager_gradients": False, "gan": {"loss": "relativistic"}}, (GRAPH, GRAPH)),
        ],
    )
    def test_of_the_settings(self, make_loss, pair, options, expected):
        assert self.modes(make_loss, pair, **options) == expected

    def test_of_the_step(self, make_loss, pair):
        options = {**PENALTY, "penalty": {"kind": "r2", "every": 2}}
        assert self.modes(make_loss, pair, step=1, **options) == (SPLIT, SHARED)
        lecam = {"gan": {"lecam_loss_weight": {"weight": 1, "start": 2}}}
        assert self.modes(make_loss, pair, step=1, **lecam) == (SPLIT, SHARED)
        assert self.modes(make_loss, pair, step=2, **lecam) == (JOINT, JOINT)

    def test_of_the_batch(self, make_loss, pair):
        assert self.modes(make_loss, (pair[0], pair[1].detach())) == (SPLIT, SPLIT)
        with torch.no_grad():
            assert self.modes(make_loss, pair, grad_penalty_loss_weight=1) == (SPLIT, SPLIT)

    @pytest.mark.parametrize(
        ("autocast", "penalty", "expected"),
        [
            (torch.bfloat16, None, (SPLIT, SHARED)),
            (torch.bfloat16, "approximate_r1", (SPLIT, SHARED)),
            (torch.bfloat16, "r1", (SPLIT, SPLIT)),  # a double backward runs in float32
            (torch.float16, None, (GRAPH, GRAPH)),
            (torch.float16, "approximate_r1", (GRAPH, GRAPH)),
            (torch.float16, "r1", (SPLIT, SPLIT)),
        ],
    )
    def test_under_autocast(self, make_loss, pair, autocast, penalty, expected):
        options = {**PENALTY, "penalty": {"kind": penalty}} if penalty else {}
        assert self.modes(make_loss, pair, autocast=autocast, **options) == expected

    def test_of_hooks_on_parameters(self, make_loss, pair):
        discriminator = Independent()
        hook = discriminator.out.weight.register_hook(lambda gradient: gradient)
        assert self.modes(make_loss, pair, discriminator=discriminator) == (GRAPH, GRAPH)
        hook.remove()
        assert self.modes(make_loss, pair, discriminator=discriminator) == (SPLIT, SHARED)

    @pytest.mark.parametrize(
        ("autocast", "eager", "expected"),
        [(None, True, True), (None, False, False), (torch.bfloat16, True, True), (torch.float16, True, False)],
    )
    def test_the_autoencoders_terms_are_eager_except_in_float16(self, make_loss, pair, autocast, eager, expected):
        """Neither hooks nor penalties change that."""
        discriminator = Independent()
        discriminator.out.weight.register_hook(lambda gradient: gradient)
        loss = make_loss(**PENALTY, discr_3d_kwargs=discriminator, eager_gradients=eager)
        batch = make_batch(loss.config, *pair, None, None)
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            assert loss._adversarial(batch, loss.schedule.at(0), both_steps=True).is_eager == expected

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

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, 2),  # reconstructions once, real clips once
            (PENALTY, 2),
            ({"eager_gradients": False}, 3),
            ({"gan": {"lecam_loss_weight": 1}}, 3),
            ({**PENALTY, "penalty": {"kind": "r2"}}, 3),
            ({"gan": {"loss": "relativistic"}}, 4),
            ({"gan": {"feature_matching_loss_weight": 1}}, 3),
            ({"gan": {"disc_train_start": 1}}, 1),
            ({"disc_start": 1}, 2),
        ],
    )
    def test_number_of_passes_in_an_update(self, make_loss, pair, options, expected):
        settings = {"perceptual_weight": 0, "adversarial_loss_weight": 1, "discr_3d_kwargs": VIDEO}
        loss = make_loss(**{**settings, **options})
        passes = []
        loss.discr_3d.register_forward_hook(lambda *_: passes.append(1))
        loss.update(*pair, 0)
        assert len(passes) == expected

    @pytest.mark.parametrize("features", [0, 1])
    def test_one_backward_serves_both_steps(self, make_loss, pair, make_feature_discriminator, features, monkeypatch):
        """With one logit per sample, unless the generator needs the real logits."""

        class Discriminator(make_feature_discriminator):
            samples_are_independent = True

        for name, expected in (("hinge", 1), ("relativistic", 0)):
            calls = []
            monkeypatch.setattr(
                "telecine.objective.eager_adversarial.shared_backward",
                lambda *args, calls=calls, **options: (
                    calls.append(options["retain_graph"]) or shared_backward(*args, **options)
                ),
            )
            gan = {"loss": name, "feature_matching_loss_weight": features}
            loss = make_loss(adversarial_loss_weight=1, gan=gan, discr_3d_kwargs=Discriminator())
            loss.update(*pair, 0)
            assert calls == [bool(features)] * expected


class TanhDiscriminator(nn.Module):
    """Discriminates frames (3, 8, 8); adds a fixed bias to each sample's logit."""

    samples_are_independent = True

    def __init__(self, biases):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 1))
        self.biases = torch.tensor(biases)

    def forward(self, x):
        return self.net(x).flatten() + self.biases.to(x.dtype)


def both_gradients(loss, logits, x, parameters, *, known=None, retain_graph=False):
    known = known or [None] * len(parameters)
    return shared_backward(loss, logits, x, parameters, retain_graph=retain_graph, add_to=known)


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
        known = [torch.full_like(parameter, 5.0) for parameter in parameters]
        added = both_gradients(GAN_LOSSES["hinge"], discriminator(x), x, parameters, known=known)[1]
        assert plain[-1] is None
        torch.testing.assert_close(added, [*(gradient + 5 for gradient in plain[:-1]), torch.full_like(unused, 5.0)])

    def test_no_gradient_of_either_loss(self):
        @gan_loss(is_separable=True, uses_real=False)
        def constant(*, real, fake):
            return GAN_LOSSES["least_squares"](real=0 * real, fake=0 * fake)

        discriminator = TanhDiscriminator([0.0, 1.0])
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        grad_x, gradients = both_gradients(constant, discriminator(x), x, list(discriminator.parameters()))
        assert grad_x.eq(0).all()
        assert all(gradient.eq(0).all() for gradient in gradients)

    def test_known_cotangents_of_the_hinge(self):
        generator, discriminator = _cotangents(GAN_LOSSES["hinge"], torch.tensor([0.0, -2.0]))
        assert generator.tolist() == [-0.5, -0.5]
        assert discriminator.tolist() == [0.5, 0.0]

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

    def test_when_it_applies(self):
        x = torch.randn(2, 3, 16, 16, requires_grad=True)
        discriminator = Discriminator(dim=1, image_size=16, linear_attn_heads=2)
        logits = discriminator(x).logits
        assert _can_share_backward(discriminator, logits, x)
        assert not _can_share_backward(discriminator, logits, x.detach()), "the input gets no gradient"
        assert not _can_share_backward(discriminator, logits.half(), x), "a tiny cotangent would underflow"
        assert not _can_share_backward(nn.BatchNorm2d(3), logits, x), "samples may depend on each other"
        patches = PatchDiscriminator(dim=1, num_layers=1)
        assert not _can_share_backward(patches, patches(x).logits, x), "a sample has several logits"
