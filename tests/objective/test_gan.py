"""The GAN: both sides' losses, feature matching and penalties in the loss, and the gradient mode of each situation."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine.losses import (
    GAN_LOSSES,
    GRAD_PENALTIES,
    GANLoss,
    GANLosses,
    Penalty,
    approximate_r1,
    as_penalty,
)
from telecine.losses.penalty import gradient_penalty

VIDEO = {"dim": 1, "image_size": 16, "frame_num": 4, "linear_attn_heads": 2}


def wasserstein(*, real, fake):
    """Return the losses of a Wasserstein GAN; the function declares nothing."""
    return GANLosses(discriminator=fake.mean() - real.mean(), generator=-fake.mean())


def doubling(*, real, fake):
    """Double the real part of the discriminator's loss once `fake.mean() > 4`."""
    factor = torch.where(fake.detach().mean() > 4, 2.0, 1.0)
    return GANLosses(discriminator=fake.mean() - factor * real.mean(), generator=-fake.mean())


def discriminator_gradients(loss, real, fake, **options):
    """Return the gradients of the discriminators, first of their step alone, then of `update`."""
    found = []
    for run in (lambda: loss(real, fake, 1, 0, **options)[0], lambda: loss.update(real, fake, 0, **options).disc_loss):
        loss.zero_grad()
        run().backward()
        found.append([parameter.grad for parameter in loss.get_trainable_parameters()])
    return found


class TestGANLosses:
    @pytest.mark.parametrize("eager", [True, False])
    def test_a_part_that_depends_on_the_other_sides_logits(self, make_loss, make_discriminator, eager):
        """The discriminator gets the whole gradient of the real part, whatever the fake logits were before."""
        loss = make_loss(
            perceptual_weight=0,
            adversarial_loss_weight=1,
            gan={"loss": doubling},
            discr_3d_kwargs=make_discriminator(10.0),
            eager_gradients=eager,
        )
        real = torch.full((2, 3, 4, 16, 16), -0.3)
        fake = torch.full_like(real, 0.5, requires_grad=True)  # logits 5, real ones -3
        for gradients in discriminator_gradients(loss, real, fake):
            assert gradients[0].item() == pytest.approx(5 + 2 * 3)

    def test_relativistic(self, make_loss, make_feature_discriminator, pair):
        x, y = pair
        discriminator = make_feature_discriminator()
        options = {"gan": {"loss": "relativistic"}, "discr_3d_kwargs": discriminator}
        loss = make_loss(perceptual_weight=0, adversarial_loss_weight=1, **options)
        log = loss(x, y, 0, 0)[1]
        real, fake = (2 * video.flatten(1).mean(1) for video in (x, y))
        torch.testing.assert_close(log["train/gen_loss"], F.softplus(real - fake).mean().detach())
        assert discriminator.grad_enabled == [True, False], "no graph of the real clips"
        log = loss(x, y, 1, 0)[1]
        torch.testing.assert_close(log["train/discr_loss"], F.softplus(fake - real).mean().detach())

    @pytest.mark.parametrize("name", ["hinge", "vanilla", "least_squares"])
    def test_the_generator_does_not_need_real_logits(self, make_loss, make_discriminator, pair, name):
        discriminator = make_discriminator()
        options = {"gan": {"loss": name}, "discr_3d_kwargs": discriminator}
        make_loss(perceptual_weight=0, adversarial_loss_weight=1, **options)(*pair, 0, 0)
        assert len(discriminator.inputs) == 1
        assert GAN_LOSSES[name].parts is not None

    @pytest.mark.parametrize("eager", [True, False])
    def test_a_function_that_declares_nothing(self, make_loss, make_feature_discriminator, pair, eager):
        options = {"gan": {"loss": wasserstein}, "discr_3d_kwargs": make_feature_discriminator()}
        loss = make_loss(perceptual_weight=0, adversarial_loss_weight=1, eager_gradients=eager, **options)
        x, y = pair
        torch.testing.assert_close(loss(x, y, 0, 0)[1]["train/gen_loss"], -2 * y.mean().detach())
        total, log = loss(x, y, 1, 0)
        torch.testing.assert_close(total, 2 * y.mean().detach() - 2 * x.mean())
        assert "train/hinge_active" not in log
        for gradients in discriminator_gradients(loss, x, y):
            torch.testing.assert_close(gradients, [y.mean().detach() - x.mean()])

    @pytest.mark.parametrize("eager", [False, True])
    def test_a_discriminator_without_trainable_parameters(self, make_loss, make_discriminator, pair, eager):
        options = {"discr_3d_kwargs": make_discriminator().requires_grad_(False), "eager_gradients": eager}
        loss = make_loss(perceptual_weight=0, adversarial_loss_weight=1, **options)
        assert discriminator_gradients(loss, *pair) == [[None]] * 2
        total, log = loss(*pair, 1, 0)
        assert total.item() == log["train/total_disc_loss"].item() > 0

    def test_beyond_the_margin_the_hinge_has_no_gradient(self, make_loss, make_discriminator):
        class Confident(make_discriminator):
            samples_are_independent = True

        options = {"perceptual_weight": 0, "adversarial_loss_weight": 1}
        loss = make_loss(**options, discr_3d_kwargs=Confident(10.0))
        real = torch.full((2, 3, 4, 16, 16), 0.5)
        found = discriminator_gradients(loss, real, (-real).requires_grad_())
        assert [[gradient.item() for gradient in gradients] for gradients in found] == [[0.0]] * 2

    @pytest.mark.parametrize("loss", [*GAN_LOSSES.values(), GANLoss(wasserstein), GANLoss(partial(wasserstein))])
    def test_copies(self, loss):
        """A decorated function is found by its name; any other is pickled with what it declares."""
        for copied in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
            assert (copied is loss) == (loss in GAN_LOSSES.values())
            assert copied.parts is loss.parts
            assert copied(real=torch.ones(2), fake=torch.zeros(2)) == loss(real=torch.ones(2), fake=torch.zeros(2))


class TestFeatureMatching:
    def test_value_and_gradients(self, make_loss, make_feature_discriminator, pair):
        x, y = pair
        discriminator = make_feature_discriminator()
        loss = make_loss(perceptual_weight=0, gan={"feature_matching_loss_weight": 3}, discr_3d_kwargs=discriminator)
        total, log = loss(x, y, 0, 0)
        expected = (2 * F.l1_loss(x, y) + 6 * F.l1_loss(x, y)) / 2
        torch.testing.assert_close(log["train/feature_matching_loss"], expected.detach())
        torch.testing.assert_close(total, F.mse_loss(x, y) + 3 * expected)
        assert log["train/gen_loss"] == 0
        torch.testing.assert_close(*(torch.autograd.grad(t, y)[0] for t in (total, F.mse_loss(x, y) + 3 * expected)))
        assert discriminator.scale.grad is None

    def test_the_mean_over_all_discriminators(self, make_loss, make_feature_discriminator, pair):
        loss = make_loss(
            perceptual_weight=0,
            adversarial_loss_weight=1,
            gan={"feature_matching_loss_weight": 3},
            discr_3d_kwargs=make_feature_discriminator(),
            multiscale_discr_kwargs=[make_feature_discriminator(0.0)],
        )
        log = loss(*pair, 0, 0)[1]
        torch.testing.assert_close(log["train/feature_matching_loss"], 4 * F.l1_loss(*pair).detach() / 2)
        assert log["train/gen_loss"].item() == pytest.approx(-2 * pair[1].mean().item()), (
            "multi-scale ones have no weight"
        )

    def test_it_needs_features(self, make_loss, make_discriminator, pair):
        gan = {"feature_matching_loss_weight": 3}
        loss = make_loss(perceptual_weight=0, gan=gan, discr_3d_kwargs=make_discriminator())
        with pytest.raises(ValueError, match="features"):
            loss(*pair, 0, 0)


class Cubic(nn.Module):
    """`D(x) = sum(weight * x^3)`, whose gradient with respect to x is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return (self.weight * x**3).flatten(1).sum(1)


class TestPenalty:
    def build(self, make_loss, kind, **options):
        options = {"perceptual_weight": 0, "grad_penalty_loss_weight": 2, "discr_3d_kwargs": Cubic(), **options}
        return make_loss(penalty={"kind": kind}, **options)

    @pytest.mark.parametrize("kind", ["one_centered", "r1", "r2", "r1_and_r2"])
    @pytest.mark.parametrize("eager", [True, False])
    def test_known_values(self, make_loss, pair, kind, eager):
        loss = self.build(make_loss, kind, eager_gradients=eager)
        total, log = loss(*pair, 1, 0)
        weight = loss.discr_3d.weight
        slopes = [(3 * weight * video.detach() ** 2).flatten(1).square().sum(1) for video in pair]
        expected = {
            "one_centered": (slopes[0].sqrt() - 1).square().mean(),
            "r1": slopes[0].mean() / 2,
            "r2": slopes[1].mean() / 2,
            "r1_and_r2": (slopes[0] + slopes[1]).mean() / 2,
        }[kind]
        torch.testing.assert_close(log["train/grad_penalty_loss"], expected.detach())
        torch.testing.assert_close(total.detach(), log["train/discr_loss"] + 2 * expected.detach())
        real, fake = (loss.discr_3d(video.detach()) for video in pair)
        hinge = GAN_LOSSES["hinge"](real=real, fake=fake).discriminator
        torch.testing.assert_close(*(torch.autograd.grad(t, weight)[0] for t in (total, hinge + 2 * expected)))

    @pytest.mark.parametrize("kind", ["wgan_gp", "approximate_r1"])
    def test_noise_comes_from_the_generator(self, make_loss, pair, kind):
        loss = self.build(make_loss, kind)
        values = [
            loss(*pair, 1, 0, generator=torch.Generator().manual_seed(seed))[1]["train/grad_penalty_loss"].item()
            for seed in (0, 0, 1)
        ]
        assert values[0] == values[1] != values[2]

    def test_the_approximation_needs_no_double_backward(self, make_loss, pair, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("autograd.grad was called")

        approximate, exact = (self.build(make_loss, kind, eager_gradients=False) for kind in ("approximate_r1", "r1"))
        monkeypatch.setattr(torch.autograd, "grad", refuse)
        approximate(*pair, 1, 0)[0].backward()
        with pytest.raises(AssertionError, match=r"autograd.grad was called"):
            exact(*pair, 1, 0)

    def test_a_function_gets_everything(self, make_loss, pair):
        given = {}

        def zero_centered(**arguments):
            given.update(arguments)
            return gradient_penalty(real=arguments["real"], logits=arguments["real_logits"], center=0.0)

        loss = self.build(make_loss, zero_centered)
        generator = torch.Generator()
        log = loss(*pair, 1, 0, generator=generator)[1]
        expected = (3 * pair[0] ** 2).flatten(1).square().sum(1).mean()
        torch.testing.assert_close(log["train/grad_penalty_loss"], expected)
        assert set(given) == {"discriminator", "real", "fake", "real_logits", "fake_logits", "generator"}
        assert given["generator"] is generator
        for side, video in zip(("real", "fake"), pair, strict=True):
            assert torch.equal(given[side], video)
            assert given[side].requires_grad
            torch.testing.assert_close(given["discriminator"](given[side]), given[f"{side}_logits"])

    @pytest.mark.parametrize("every", [1, 4])
    def test_every_n_th_step_with_n_times_the_weight(self, make_loss, pair, every):
        loss = make_loss(
            perceptual_weight=0, grad_penalty_loss_weight=2, penalty={"every": every}, discr_3d_kwargs=Cubic()
        )
        for step in range(5):
            total, log = loss(*pair, 1, step)
            penalty = log["train/grad_penalty_loss"]
            assert (penalty > 0) == (step % every == 0)
            assert (total - log["train/discr_loss"]).item() == pytest.approx(2 * every * penalty.item(), rel=1e-5)

    @pytest.mark.parametrize(
        ("kind", "autocast"),
        [("one_centered", {False}), ("r2", {False}), ("approximate_r1", {True, False})],  # it compares in float32
    )
    @pytest.mark.parametrize("eager", [True, False])
    def test_a_double_backward_turns_autocast_off(self, make_loss, pair, kind, autocast, eager):
        class Recorded(Cubic):
            def forward(self, x):
                recorded.append(torch.is_autocast_enabled("cpu"))
                return super().forward(x)

        recorded = []
        options = {"discr_3d_kwargs": Recorded(), "penalty": {"kind": kind, "every": 2}, "eager_gradients": eager}
        loss = make_loss(perceptual_weight=0, grad_penalty_loss_weight=1, **options)
        with torch.autocast("cpu", torch.bfloat16):
            loss(*pair, 1, 0)
            assert set(recorded) == autocast
            recorded.clear()
            loss(*pair, 1, 1)
        assert recorded == [True, True], "this step has no penalty"

    def test_what_a_penalty_declares(self):
        def function(**_):
            return 0

        assert as_penalty(GRAD_PENALTIES["r1"]) is GRAD_PENALTIES["r1"]
        assert as_penalty(function) == Penalty(function)
        wider = as_penalty(partial(approximate_r1, sigma=0.1))
        assert (wider.differentiates_real, wider.double_backward) == (False, False)
        assert wider.function.keywords == {"sigma": 0.1}


class Independent(nn.Module):
    """A discriminator of videos whose weight is a sum, as reparametrisations have it."""

    samples_are_independent = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.base = nn.Parameter(0.2 * torch.randn(6, 3, 3, 3, 3))
        self.delta = nn.Parameter(torch.zeros(6, 3, 3, 3, 3))
        self.positions = nn.Parameter(torch.zeros(1, 3, 4, 16, 16))
        self.out = nn.Linear(6, 1)

    def forward(self, x):
        y = F.conv3d(x + self.positions, self.base + self.delta)
        return self.out(y.relu().mean((2, 3, 4))).squeeze(1)


class TestCallArguments:
    """`generator` and `grad_hook` belong to a call."""

    def test_hooks_on_parameters_are_called_once(self, make_loss, pair):
        discriminators = Independent(), Independent()
        calls = []
        for discriminator in discriminators:
            discriminator.out.weight.register_hook(lambda gradient: calls.append(0) or 0.5 * gradient)

        def gradients(discriminator, **options):
            settings = {"perceptual_weight": 0, "adversarial_loss_weight": 1, "discr_3d_kwargs": discriminator}
            return discriminator_gradients(make_loss(**settings, **options), *pair)

        expected = gradients(discriminators[0], eager_gradients=False)
        assert len(calls) == 2
        torch.testing.assert_close(gradients(discriminators[1]), expected)
        assert len(calls) == 4

    @pytest.mark.parametrize("eager", [True, False])
    @pytest.mark.parametrize("update", [False, True])
    def test_grad_hook_gets_the_discriminators_part_of_the_gradient(self, make_loss, pair, eager, update):
        loss = make_loss(
            perceptual_weight=0,
            adversarial_loss_weight=0.5,
            discr_3d_kwargs=VIDEO,
            adaptive_weight={"reference": "none"},
            eager_gradients=eager,
        )
        real, fake = pair
        gradients = []
        if update:
            total = loss.update(real, fake, 0, grad_hook=gradients.append).loss
        else:
            total, _ = loss(real, fake, 0, 0, grad_hook=gradients.append)
        total.backward()
        of_error = 2 * (fake - real).detach() / fake.numel()
        torch.testing.assert_close(gradients[-1], fake.grad - of_error)
        assert gradients[-1].abs().sum() > 0

    def test_the_generator_decides_which_frames_are_seen(self, make_loss, make_discriminator, clip):
        loss = make_loss(discr_kwargs=make_discriminator(), perceptual_weight=0, adversarial_loss_weight=1)

        def frames(step, seed):
            loss.discr.inputs.clear()
            loss(clip(), clip(), step, 0, generator=torch.Generator().manual_seed(seed))
            return torch.cat(loss.discr.inputs)

        for step in (0, 1):
            seeds = [frames(step, seed) for seed in (0, 0, 1, 2, 3)]
            assert torch.equal(seeds[0], seeds[1])
            assert not all(torch.equal(seeds[0], other) for other in seeds[2:])

    def test_one_generator_for_each_clip(self, make_loss, make_discriminator, clip):
        loss = make_loss(discr_kwargs=make_discriminator())
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        loss(clip(), clip(), 1, 0, generator=generators)
        both = loss.discr.inputs[-1]
        loss(clip()[1:], clip()[1:], 1, 0, generator=[torch.Generator().manual_seed(4)])
        assert torch.equal(loss.discr.inputs[-1], both[1:])

    @pytest.mark.parametrize("options", [{}, {"gan": {"loss": "relativistic"}}, {"eager_gradients": False}])
    def test_real_clips_and_reconstructions_are_compared_on_the_same_frame(
        self, make_loss, make_discriminator, clip, options
    ):
        options = {
            "perceptual_weight": 0,
            "adversarial_loss_weight": 1,
            "discr_kwargs": make_discriminator(),
            **options,
        }
        loss, x = make_loss(**options), clip()
        for run in (lambda: loss(x, -x, 1, 0), lambda: loss.update(x, (-x).requires_grad_(), 0)):
            for _ in range(5):
                run()
                real, fake = loss.discr.inputs[-2:]
                assert real.shape == (2, 3, 16, 16)
                assert torch.equal(real, -fake)

    def test_every_frame_is_drawn_independently_for_each_clip(self, make_loss, make_discriminator):
        loss = make_loss(perceptual_weight=0, adversarial_loss_weight=1, discr_kwargs=make_discriminator())
        x = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(2, 3, 4, 16, 16) / 10
        for _ in range(100):
            loss(x, x, 0, 0)
        pairs = {tuple(round(10 * frame.mean().item()) for frame in frames) for frames in loss.discr.inputs}
        assert pairs == {(i, j) for i in range(4) for j in range(4)}

    def test_a_discriminator_of_frames_of_down_scaled_videos(self, make_loss, make_feature_discriminator, pair):
        class Frames(make_feature_discriminator):
            sees = "frames"

        discriminators = Frames(), Frames()
        loss = make_loss(
            perceptual_weight=0, multiscale_adversarial_loss_weight=1, multiscale_discr_kwargs=discriminators
        )
        for index in (0, 1):
            loss(*pair, index, 0)
        for discriminator, size in zip(discriminators, (8, 4), strict=True):
            assert [tuple(x.shape) for x in discriminator.inputs] == [(2, 3, size, size)] * 3

    def test_a_loss_without_discriminators_has_no_step_for_them(self, make_loss, pair):
        loss = make_loss(perceptual_weight=0)
        message = r"`discriminators` must be at least one for their step, but got none.*`discr_3d_kwargs`"
        for run in (lambda: loss(*pair, 1, 0), lambda: loss.update(*pair, 0)):
            with pytest.raises(ValueError, match=message):
                run()


class TestWindow:
    """The discriminators see some consecutive frames of a long clip."""

    def seen(self, make_loss, make_discriminator, *, step, seed, window=2):
        loss = make_loss(
            discr_3d_kwargs=make_discriminator(),
            perceptual_weight=0,
            adversarial_loss_weight=1,
            gan={"window": window},
        )
        # Frame t of clip b is t + 10 b, negative in the reconstruction.
        real = (torch.arange(6.0)[:, None, None] + 10 * torch.arange(2.0).view(2, 1, 1, 1, 1)) / 20
        real = real.expand(2, 3, 6, 4, 4)
        fake = (-real).clone().requires_grad_()
        total, _ = loss(real, fake, step, 0, generator=torch.Generator().manual_seed(seed))
        if step == 0:
            total.backward()
        return [20 * x[:, 0, :, 0, 0] for x in loss.discr_3d.inputs], fake

    def test_real_and_reconstruction_have_the_same_consecutive_frames(self, make_loss, make_discriminator):
        firsts = set()
        for seed in range(20):
            (real, fake), _ = self.seen(make_loss, make_discriminator, step=1, seed=seed)
            assert real.shape == (2, 2)
            torch.testing.assert_close(fake, -real)
            torch.testing.assert_close(real[:, 1] - real[:, 0], torch.ones(2))
            firsts |= {round(first) for first in (real[:, 0] - torch.tensor([0.0, 10.0])).tolist()}
        assert firsts == {0, 1, 2, 3, 4}, "every frame is seen"

    def test_only_frames_in_the_window_get_its_gradient(self, make_loss, make_discriminator):
        inputs, fake = self.seen(make_loss, make_discriminator, step=0, seed=1)
        error = 2 * (2 * fake).detach() / fake.numel()  # of the mean squared error
        adversarial = (fake.grad - error).abs().sum((1, 3, 4))
        frames = (-inputs[0] - torch.tensor([[0.0], [10.0]])).round().long()
        expected = torch.zeros(2, 6, dtype=torch.bool).scatter(1, frames, True)
        assert torch.equal(adversarial > 1e-6, expected)

    def test_a_clip_that_is_not_longer_is_seen_whole(self, make_loss, make_discriminator):
        (real, _), _ = self.seen(make_loss, make_discriminator, step=1, seed=0, window=6)
        assert real.shape == (2, 6)

    def test_the_gradient_hook_sees_the_whole_video(self, make_loss, make_discriminator, clip):
        loss = make_loss(
            discr_3d_kwargs=make_discriminator(), perceptual_weight=0, adversarial_loss_weight=1, gan={"window": 1}
        )
        gradients = []
        real, fake = clip(), clip(seed=2).requires_grad_()
        loss.update(real, fake, 0, grad_hook=gradients.append).loss.backward()
        assert gradients[-1].shape == fake.shape
        of_error = 2 * (fake - real).detach() / fake.numel()
        torch.testing.assert_close(gradients[-1], fake.grad - of_error)

    def test_a_window_that_is_no_number_of_frames(self, make_loss):
        with pytest.raises(ValueError, match=r"`gan.window` must be at least 1"):
            make_loss(gan={"window": 0})


class TestAugment:
    """The discriminators see changed clips; the other terms do not."""

    def make(self, make_loss, discriminator, names=("color", "translation", "cutout"), **options):
        return make_loss(
            discr_3d_kwargs=discriminator,
            perceptual_weight=0,
            adversarial_loss_weight=1,
            gan={"augment": names},
            **options,
        )

    def test_a_clip_and_its_reconstruction_are_changed_alike_in_both_steps(self, make_loss, make_discriminator, clip):
        """Two calls with the same generator draw what an update draws, and have its losses."""
        real, fake = clip(), clip().requires_grad_()  # the same
        found = []
        for in_update in (True, False):
            loss = self.make(make_loss, make_discriminator())
            generators = [torch.Generator().manual_seed(3) for _ in range(2)]
            if in_update:
                both = loss.update(real, fake, 0, generator=generators[0])
                totals = [both.loss, both.disc_loss]
            else:
                totals = [loss(real, fake, i, 0, generator=generators[i])[0] for i in (0, 1)]
            inputs = loss.discr_3d.inputs
            assert all(torch.equal(x, inputs[0]) for x in inputs)
            assert not torch.equal(inputs[0], real)
            fake.grad = None
            sum(totals).backward()
            found.append([total.detach() for total in totals] + [fake.grad, loss.discr_3d.weight.grad])
        torch.testing.assert_close(*found)

    def test_the_gradient_is_that_of_the_change(self, make_loss, make_discriminator, clip):
        loss = self.make(make_loss, make_discriminator(), ["cutout"])
        real, fake, gradients = clip(), clip(seed=2).requires_grad_(), []
        loss.update(real, fake, 0, grad_hook=gradients.append).loss.backward()
        error = 2 * (fake - real).detach() / fake.numel()
        adversarial = fake.grad - error
        torch.testing.assert_close(gradients[-1], adversarial)
        hidden = (loss.discr_3d.inputs[0] == 0).all(1, keepdim=True).expand_as(fake)
        assert 0 < hidden.float().mean() < 0.3
        assert (adversarial[hidden].abs() < 1e-8).all(), "the pixel loss alone trains hidden pixels"
        torch.testing.assert_close(adversarial[~hidden], torch.full_like(adversarial[~hidden], -1 / fake.numel()))


def test_lecam(make_loss, clip):
    video = {"dim": 1, "image_size": 16, "frame_num": 2}
    loss = make_loss(perceptual_weight=0, gan={"lecam_loss_weight": 3.0}, discr_3d_kwargs=video)
    total, log = loss(clip(), clip(seed=2), 1, 0)
    assert log["train/lecam_loss"] > 0
    expected = log["train/discr_loss"] + 3 * log["train/lecam_loss"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    saved = {name for name in loss.state_dict() if not name.startswith("discr_3d.")}
    assert saved == {f"lecam.discr_3d.{side}.{x}" for side in ("real", "fake") for x in ("mean", "num_values")}
    regulariser = loss.lecam["discr_3d"]
    assert regulariser.real.mean.item() == pytest.approx(log["train/logits_real"].item(), rel=1e-6)
