"""The GAN: both sides' losses, feature matching and penalties in the loss, and the gradient mode of each situation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine.losses import GAN_LOSSES, GANLosses
from telecine.losses.penalty import gradient_penalty
from telecine.ops.pass_options import pass_options

VIDEO = {"dim": 1, "image_size": 16, "frame_num": 4, "linear_attn_heads": 2}


def wasserstein(*, real, fake):
    """Return the losses of a Wasserstein GAN; the function declares nothing."""
    return GANLosses(discriminator=fake.mean() - real.mean(), generator=-fake.mean())


def doubling(*, real, fake):
    """Double the real part of the discriminator's loss once `fake.mean() > 4`."""
    factor = torch.where(fake.detach().mean() > 4, 2.0, 1.0)
    return GANLosses(discriminator=fake.mean() - factor * real.mean(), generator=-fake.mean())


def discriminator_gradients(loss, real, fake, **options):
    """Return the gradients of the discriminators, first of their step alone, then of `both_losses`."""
    gradients = []
    for in_update in (False, True):
        loss.zero_grad()
        if in_update:
            total = loss.both_losses(real, fake, 0, **options).disc_loss
        else:
            total = loss(real, fake, 1, 0, **options)[0]
        total.backward()
        gradients.append([parameter.grad for parameter in loss.get_trainable_parameters()])
    return gradients


class TestGANLosses:
    @pytest.mark.parametrize("eager", [True, False])
    def test_a_part_that_depends_on_the_other_sides_logits(
        self, make_loss, make_discriminator, eager
    ):
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

    @pytest.mark.parametrize("eager", [True, False])
    @pytest.mark.parametrize(
        ("loss", "generator_loss", "discriminator_loss"),
        [
            (
                "relativistic",
                lambda real, fake: F.softplus(real - fake),
                lambda real, fake: F.softplus(fake - real),
            ),
            (wasserstein, lambda real, fake: -fake, lambda real, fake: fake - real),
        ],
    )
    def test_losses_of_pairs(
        self,
        make_loss,
        make_feature_discriminator,
        pair,
        loss,
        generator_loss,
        discriminator_loss,
        eager,
    ):
        """As for any function that declares nothing, both steps need real and fake logits."""
        discriminator = make_feature_discriminator()
        options = {
            "gan": {"loss": loss},
            "discr_3d_kwargs": discriminator,
            "eager_gradients": eager,
        }
        loss = make_loss(perceptual_weight=0, adversarial_loss_weight=1, **options)
        real, fake = (2 * video.detach().flatten(1).mean(1) for video in pair)
        log = loss(*pair, 0, 0)[1]
        torch.testing.assert_close(log["train/gen_loss"], generator_loss(real, fake).mean())
        assert discriminator.grad_enabled == [True, False], "no graph of the real clips"
        total, log = loss(*pair, 1, 0)
        torch.testing.assert_close(log["train/discr_loss"], discriminator_loss(real, fake).mean())
        assert total == log["train/discr_loss"]
        assert "train/hinge_active" not in log

    @pytest.mark.parametrize("eager", [False, True])
    def test_a_discriminator_without_trainable_parameters(
        self, make_loss, make_discriminator, pair, eager
    ):
        options = {
            "discr_3d_kwargs": make_discriminator().requires_grad_(False),
            "eager_gradients": eager,
        }
        loss = make_loss(perceptual_weight=0, adversarial_loss_weight=1, **options)
        assert discriminator_gradients(loss, *pair) == [[None]] * 2
        total, log = loss(*pair, 1, 0)
        assert total.item() == log["train/total_disc_loss"].item() > 0


class TestFeatureMatching:
    def test_value_and_gradients(self, make_loss, make_feature_discriminator, pair):
        x, y = pair
        discriminator = make_feature_discriminator()
        loss = make_loss(
            perceptual_weight=0,
            gan={"feature_matching_loss_weight": 3},
            discr_3d_kwargs=discriminator,
            multiscale_discr_kwargs=[make_feature_discriminator(0.0)],
        )
        total, log = loss(x, y, 0, 0)
        expected = (
            (2 + 6) * F.l1_loss(x, y) / 2 / 2
        )  # means over two features and two discriminators
        torch.testing.assert_close(log["train/feature_matching_loss"], expected.detach())
        torch.testing.assert_close(total, F.mse_loss(x, y) + 3 * expected)
        assert log["train/gen_loss"] == 0
        torch.testing.assert_close(
            *(torch.autograd.grad(t, y)[0] for t in (total, F.mse_loss(x, y) + 3 * expected))
        )
        assert discriminator.scale.grad is None


class Cubic(nn.Module):
    """`D(x) = sum(weight * x^3)`, whose gradient with respect to x is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return (self.weight * x**3).flatten(1).sum(1)


class TestPenalty:
    @pytest.fixture
    def build(self, make_loss):
        def build(kind="one_centered", *, every=1, **options):
            options = {
                "perceptual_weight": 0,
                "grad_penalty_loss_weight": 2,
                "discr_3d_kwargs": Cubic(),
                **options,
            }
            return make_loss(penalty={"kind": kind, "every": every}, **options)

        return build

    @pytest.mark.parametrize("kind", ["one_centered", "r1", "r2", "r1_and_r2"])
    @pytest.mark.parametrize("eager", [True, False])
    def test_known_values(self, build, pair, kind, eager):
        loss = build(kind, eager_gradients=eager)
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
        torch.testing.assert_close(
            *(torch.autograd.grad(t, weight)[0] for t in (total, hinge + 2 * expected))
        )

    def test_a_function_gets_everything(self, build, pair):
        inputs = {}

        def zero_centered(**arguments):
            inputs.update(arguments)
            return gradient_penalty(
                real=arguments["real"], logits=arguments["real_logits"], center=0.0
            )

        loss = build(zero_centered)
        generator = torch.Generator()
        log = loss(*pair, 1, 0, generator=generator)[1]
        expected = (3 * pair[0] ** 2).flatten(1).square().sum(1).mean()
        torch.testing.assert_close(log["train/grad_penalty_loss"], expected)
        assert set(inputs) == {
            "discriminator",
            "real",
            "fake",
            "real_logits",
            "fake_logits",
            "generator",
        }
        assert inputs["generator"] is generator
        for side, video in zip(("real", "fake"), pair, strict=True):
            assert torch.equal(inputs[side], video)
            assert inputs[side].requires_grad
            torch.testing.assert_close(
                inputs["discriminator"](inputs[side]), inputs[f"{side}_logits"]
            )

    @pytest.mark.parametrize("every", [1, 4])
    def test_every_n_th_step_with_n_times_the_weight(self, build, pair, every):
        loss = build(every=every)
        for step in range(5):
            total, log = loss(*pair, 1, step)
            penalty = log["train/grad_penalty_loss"]
            assert (penalty > 0) == (step % every == 0)
            assert (total - log["train/discr_loss"]).item() == pytest.approx(
                2 * every * penalty.item(), rel=1e-5
            )

    @pytest.mark.parametrize(
        ("kind", "autocast"),
        [
            ("one_centered", {False}),
            ("r2", {False}),
            ("wgan_gp", {False}),
            ("approximate_r1", {True, False}),  # it compares in float32
        ],
    )
    @pytest.mark.parametrize("eager", [True, False])
    def test_a_double_backward_is_announced_and_turns_autocast_off(
        self, build, pair, kind, autocast, eager
    ):
        class Recorded(Cubic):
            def forward(self, x):
                has_autocast.append(torch.is_autocast_enabled("cpu"))
                is_announced.append(pass_options().is_differentiated_twice)
                return super().forward(x)

        has_autocast = []
        is_announced = []
        loss = build(kind, every=2, discr_3d_kwargs=Recorded(), eager_gradients=eager)
        with torch.autocast("cpu", torch.bfloat16):
            loss(*pair, 1, 0)
            assert set(has_autocast) == autocast
            assert any(is_announced) == (kind != "approximate_r1")
            has_autocast.clear()
            is_announced.clear()
            loss(*pair, 1, 1)
        assert has_autocast == [True, True], "this step has no penalty"
        assert not any(is_announced)


class TestCallArguments:
    """`generator` and `grad_hook` belong to a call."""

    def test_hooks_on_parameters_are_called_once(self, make_loss, make_discriminator, pair):
        calls = []

        def halve(gradient):
            calls.append(gradient)
            return 0.5 * gradient

        def gradients(*, hooked, **options):
            discriminator = make_discriminator()
            if hooked:
                discriminator.weight.register_hook(halve)
            options = {"adversarial_loss_weight": 1, "discr_3d_kwargs": discriminator, **options}
            return discriminator_gradients(make_loss(perceptual_weight=0, **options), *pair)

        plain = gradients(hooked=False)
        for eager in (False, True):
            calls.clear()
            halved = gradients(hooked=True, eager_gradients=eager)
            assert len(calls) == 2
            torch.testing.assert_close(
                halved, [[gradient / 2 for gradient in step] for step in plain]
            )

    @pytest.mark.parametrize("eager", [True, False])
    @pytest.mark.parametrize("update", [False, True])
    @pytest.mark.parametrize("gan", [{}, {"window": 1}, {"augment": ["cutout"]}])
    def test_grad_hook_gets_the_discriminators_part_of_the_gradient(
        self, make_loss, pair, eager, update, gan
    ):
        """For the whole video, also where the discriminators see a part of it."""
        loss = make_loss(
            perceptual_weight=0,
            adversarial_loss_weight=0.5,
            discr_3d_kwargs=VIDEO,
            adaptive_weight={"reference": "recon_and_perceptual", "at": "reconstruction"},
            eager_gradients=eager,
            gan=gan,
        )
        real, fake = pair
        gradients = []
        if update:
            total = loss.both_losses(real, fake, 0, grad_hook=gradients.append).loss
        else:
            total, _ = loss(real, fake, 0, 0, grad_hook=gradients.append)
        total.backward()
        error = 2 * (fake - real).detach() / fake.numel()
        (gradient,) = gradients  # of the whole loss, not of the adaptive weight's comparisons
        torch.testing.assert_close(gradient, fake.grad - error)
        assert gradient.abs().sum() > 0

    def test_one_generator_for_each_clip(self, make_loss, make_discriminator, clip):
        loss = make_loss(discr_kwargs=make_discriminator())
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        loss(clip(), clip(), 1, 0, generator=generators)
        both = loss.discr.inputs[-1]
        loss(clip()[1:], clip()[1:], 1, 0, generator=[torch.Generator().manual_seed(4)])
        assert torch.equal(loss.discr.inputs[-1], both[1:])

    @pytest.mark.parametrize(
        "options", [{}, {"gan": {"loss": "relativistic"}}, {"eager_gradients": False}]
    )
    def test_real_clips_and_reconstructions_are_compared_on_the_same_frame(
        self, make_loss, make_discriminator, clip, options
    ):
        options = {"adversarial_loss_weight": 1, "discr_kwargs": make_discriminator(), **options}
        loss = make_loss(perceptual_weight=0, **options)
        x = clip()
        for in_update in 5 * (False, True):
            if in_update:
                loss.both_losses(x, (-x).requires_grad_(), 0)
            else:
                loss(x, -x, 1, 0)
            real, fake = loss.discr.inputs[-2:]
            assert real.shape == (2, 3, 16, 16)
            assert torch.equal(real, -fake)


class TestWindow:
    """The discriminators see some consecutive frames of a long clip."""

    @pytest.fixture
    def seen(self, make_loss, make_discriminator):
        """Return a function that returns the frames that the discriminator saw of 6, and the reconstruction."""

        def run(*, step, seed, window=2):
            options = {
                "discr_3d_kwargs": make_discriminator(),
                "adversarial_loss_weight": 1,
                "gan": {"window": window},
            }
            loss = make_loss(perceptual_weight=0, **options)
            # Frame t of clip b is t + 10 b, negative in the reconstruction.
            numbers = torch.arange(6.0)[:, None, None] + 10 * torch.arange(2.0).view(2, 1, 1, 1, 1)
            real = (numbers / 20).expand(2, 3, 6, 4, 4)
            fake = (-real).clone().requires_grad_()
            total, _ = loss(real, fake, step, 0, generator=torch.Generator().manual_seed(seed))
            if step == 0:
                total.backward()
            return [20 * x[:, 0, :, 0, 0] for x in loss.discr_3d.inputs], fake

        return run

    def test_real_and_reconstruction_have_the_same_consecutive_frames(self, seen):
        firsts = set()
        for seed in range(20):
            (real, fake), _ = seen(step=1, seed=seed)
            assert real.shape == (2, 2)
            torch.testing.assert_close(fake, -real)
            torch.testing.assert_close(real[:, 1] - real[:, 0], torch.ones(2))
            firsts |= {round(first) for first in (real[:, 0] - torch.tensor([0.0, 10.0])).tolist()}
        assert firsts == {0, 1, 2, 3, 4}, "every frame is seen"

    def test_only_frames_in_the_window_get_its_gradient(self, seen):
        inputs, fake = seen(step=0, seed=1)
        error = 2 * (2 * fake).detach() / fake.numel()  # of the mean squared error
        adversarial = (fake.grad - error).abs().sum((1, 3, 4))
        frames = (-inputs[0] - torch.tensor([[0.0], [10.0]])).round().long()
        expected = torch.zeros(2, 6, dtype=torch.bool).scatter(1, frames, True)
        assert torch.equal(adversarial > 1e-6, expected)

    def test_a_clip_that_is_not_longer_is_seen_whole(self, seen):
        (real, _), _ = seen(step=1, seed=0, window=6)
        assert real.shape == (2, 6)


class TestAugment:
    """The discriminators see changed clips; the other terms do not."""

    @pytest.fixture
    def build(self, make_loss, make_discriminator):
        def build(*names):
            options = {
                "adversarial_loss_weight": 1,
                "discr_3d_kwargs": make_discriminator(),
                "gan": {"augment": names},
            }
            return make_loss(perceptual_weight=0, **options)

        return build

    def test_a_clip_and_its_reconstruction_are_changed_alike_in_both_steps(self, build, clip):
        """Two calls with the same generator draw what an update draws, and have its losses."""
        real = clip()
        fake = clip().requires_grad_()  # the same
        results = []
        for in_update in (True, False):
            loss = build("color", "translation", "cutout")
            generators = [torch.Generator().manual_seed(3) for _ in range(2)]
            if in_update:
                both = loss.both_losses(real, fake, 0, generator=generators[0])
                totals = [both.loss, both.disc_loss]
            else:
                totals = [
                    loss(real, fake, index, 0, generator=generators[index])[0] for index in (0, 1)
                ]
            inputs = loss.discr_3d.inputs
            assert all(torch.equal(x, inputs[0]) for x in inputs)
            assert not torch.equal(inputs[0], real)
            fake.grad = None
            sum(totals).backward()
            results.append(
                [total.detach() for total in totals] + [fake.grad, loss.discr_3d.weight.grad]
            )
        torch.testing.assert_close(*results)

    def test_only_the_pixel_loss_trains_hidden_pixels(self, build, clip):
        loss = build("cutout")
        real = clip()
        fake = clip(seed=2).requires_grad_()
        loss.both_losses(real, fake, 0).loss.backward()
        adversarial = fake.grad - 2 * (fake - real).detach() / fake.numel()
        hidden = (loss.discr_3d.inputs[0] == 0).all(1, keepdim=True).expand_as(fake)
        assert 0 < hidden.float().mean() < 0.3
        assert (adversarial[hidden].abs() < 1e-8).all()
        torch.testing.assert_close(
            adversarial[~hidden], torch.full_like(adversarial[~hidden], -1 / fake.numel())
        )


def test_lecam(make_loss, clip):
    video = {"dim": 1, "image_size": 16, "frame_num": 2}
    loss = make_loss(perceptual_weight=0, gan={"lecam_loss_weight": 3.0}, discr_3d_kwargs=video)
    total, log = loss(clip(), clip(seed=2), 1, 0)
    assert log["train/lecam_loss"] > 0
    expected = log["train/discr_loss"] + 3 * log["train/lecam_loss"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    saved = {name for name in loss.state_dict() if not name.startswith("discr_3d.")}
    assert saved == {
        f"lecam.discr_3d.{side}.{x}" for side in ("real", "fake") for x in ("mean", "num_values")
    }
    regulariser = loss.lecam["discr_3d"]
    assert regulariser.real.mean.item() == pytest.approx(log["train/logits_real"].item(), rel=1e-6)
