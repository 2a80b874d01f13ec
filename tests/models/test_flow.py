"""Decoders that generate: levels and noise, the sampler, the conditioned network, and training with them."""

import itertools
import json
import math

import pytest
import torch

from telecine.base.randomness import clip_generators
from telecine.models import CausalVAE, load_autoencoder
from telecine.models.causal_blocks import ResidualBlock
from telecine.models.causal_networks import FlowDecoder
from telecine.models.flow import (
    EulerSampler,
    LatentNoise,
    add_noise,
    integrate,
    level_weights,
    random_levels,
)
from telecine.ops.pass_options import ClipPosition, clip_position
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import FlowConfig

from .helpers import add_noise_to_weights, last_frames_read

CPU = torch.device("cpu")


def config(decoder="flow", **flow):
    small = {
        "spatial_compression": 4,
        "patch_size": 2,
        "latent_channels": 3,
        "base_channels": 8,
        "blocks_per_level": 1,
    }
    return CausalVAEConfig(
        **small, channel_multipliers=(1, 2), decoder=decoder, flow=FlowConfig(**flow)
    )


def model(*, trained=True, dtype=torch.float64, **flow):
    torch.manual_seed(0)
    vae = CausalVAE(config(**flow)).to(dtype)
    return add_noise_to_weights(vae) if trained else vae


def clip(batch=2, frames=9, dtype=torch.float64):
    return (
        torch.rand(batch, 3, frames, 16, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
        * 2
        - 1
    )


def noise(batch=2, frames=9, seed=2):
    shape = (batch, 3, frames, 16, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def latent(batch=2, frames=3):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, frames, 4, 2, generator=generator, dtype=torch.float64)


class TestDecodingNoise:
    def test_positions_of_a_latent_are_counted_in_its_cells(self):
        position = ClipPosition(first_frame=17, frame_size=(64, 96), corner=(32, 64)).in_latent(
            8, 32
        )
        assert position == ClipPosition(first_frame=3, frame_size=(2, 3), corner=(1, 2))
        assert ClipPosition().in_latent(8, 32) == ClipPosition()

    def test_the_description_has_what_is_used(self):
        assert LatentNoise(seed=1, level=0.5).describe() == {
            "name": "noise of the latent",
            "level": 0.5,
            "seed": 1,
        }
        assert EulerSampler(steps=2, seed=3).describe() == {"name": "euler", "steps": 2, "seed": 3}

    @pytest.mark.parametrize("std", [0.3, 2.0])
    def test_it_recovers_a_gaussian(self, std):
        """The mean of x given x_t is known for normal x; the exact flow maps noise eps to mean + std * eps."""
        mean = 0.25
        eps = noise(1)

        def denoise(x, level):
            t = level.view(-1, 1, 1, 1, 1)
            gain = (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2)
            return mean + gain * (x - (1 - t) * mean)

        def error(steps):
            x = integrate(denoise, eps, EulerSampler(steps=steps).levels(1.0))
            return (x - (mean + std * eps)).abs().max().item()

        errors = [error(steps) for steps in (250, 500, 1000)]
        assert errors[-1] < 0.02
        for coarse, fine in itertools.pairwise(errors):
            assert coarse / fine == pytest.approx(2, rel=0.1), "Euler's method is of first order"
        assert error(1) == pytest.approx((std * eps).abs().max().item())  # the mean alone

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_levels_and_steps_are_those_of_diffusers(self, shift):
        scheduling = pytest.importorskip("diffusers.schedulers")
        scheduler = scheduling.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
        levels = EulerSampler(steps=4).levels(shift)
        assert levels == pytest.approx(scheduler.sigmas[:-1].tolist())

        def denoise(x, level):
            return 0.5 * clip().float() + 0.1 * x  # any x0; the velocity is (x - x0) / sigma

        x = noise().float()
        for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            x = scheduler.step((x - denoise(x, sigma)) / sigma, timestep, x).prev_sample
        torch.testing.assert_close(
            integrate(denoise, noise().float(), levels), x, rtol=1e-4, atol=1e-4
        )
        still = integrate(lambda x, level: clip(), noise(), levels)
        assert torch.equal(still, clip()), "a video without variance is exact"

    def test_noise_is_a_function_of_seed_and_frame(self):
        def frames(num_frames=9, height=16, width=8, seed=5, **position):
            return EulerSampler(seed=seed).noise(
                (2, 3, num_frames, height, width), ClipPosition(**position), CPU
            )

        whole = frames()
        assert torch.equal(whole[0], whole[1])
        assert torch.equal(frames(5), whole[:, :, :5])
        assert torch.equal(frames(5, first_frame=4), whole[:, :, 4:])
        assert torch.equal(
            frames(9, 8, 6, frame_size=(16, 8), corner=(4, 2)), whole[..., 4:12, 2:8]
        )
        assert not torch.equal(frames(seed=6), whole)
        assert not torch.equal(whole[:, :, 0], whole[:, :, 1])
        many = frames(4, 64, 64)
        assert many.mean().abs() < 0.02
        assert many.std() == pytest.approx(1, abs=0.02)

    @pytest.mark.parametrize(
        ("kind", "settings", "message"),
        [
            (EulerSampler, {"steps": 0}, r"`decode_steps` must be .*Use 1, 2 or 4"),
            (EulerSampler, {"steps": 1.5}, r"`decode_steps` must be .*Use 1, 2 or 4"),
            (
                LatentNoise,
                {"level": 1.0},
                r"`decode_level` must be a number from 0 to below 1, .*Use 0\.05",
            ),
        ],
    )
    def test_invalid_settings(self, kind, settings, message):
        with pytest.raises(ValueError, match=message):
            kind(**settings)


class TestLevels:
    def test_logit_normal_and_shifted(self):
        settings = FlowConfig(level_mean=0.5, level_std=0.8, shift=3.0, noise_fraction=0.0)
        generators = clip_generators(0, range(2000), CPU)
        level = random_levels(settings, torch.zeros(2000, 3, 1, 1, 1), generators)
        unshifted = level / (3 - 2 * level)
        assert unshifted.logit().mean() == pytest.approx(0.5, abs=0.06)
        assert unshifted.logit().std() == pytest.approx(0.8, abs=0.06)
        alone = random_levels(settings, torch.zeros(1, 3, 1, 1, 1), clip_generators(0, [7], CPU))
        assert alone[0] == level[7], "of the clip's own generator"

    def test_the_shift_grows_with_the_root_of_the_number_of_pixels(self):
        assert FlowConfig(shift=2.0).shift_of(512, 512) == 2
        assert FlowConfig(shift=2.0, shift_pixels=256 * 256).shift_of(512, 512) == 4

    def test_the_defaults_train_where_one_step_starts(self):
        video = torch.zeros(4000, 3, 1, 1, 1)
        levels = random_levels(FlowConfig(), video, torch.Generator().manual_seed(0))
        assert (levels == 1).float().mean() == pytest.approx(0.1, abs=0.02)
        assert (levels > 0.95).float().mean() > 0.13
        older = FlowConfig(shift=1.0, noise_fraction=0.0)
        assert (
            random_levels(older, video, torch.Generator().manual_seed(0)) > 0.95
        ).float().mean() < 0.005

    def test_a_model_of_an_older_version_keeps_its_levels(self, tmp_path):
        vae = model(dtype=torch.float32, shift=1.0, noise_fraction=0.0)
        vae.save_pretrained(tmp_path)
        assert "noise_fraction" not in json.loads((tmp_path / "config.json").read_text())["flow"]
        assert load_autoencoder(tmp_path).config == vae.config

    def test_one_step_is_noise_alone(self):
        level = random_levels(FlowConfig(one_step=True), torch.zeros(3, 3, 1, 1, 1), None)
        assert level.tolist() == [1, 1, 1]
        assert torch.equal(add_noise(clip(), noise(), torch.ones(2)), noise())

    def test_weights(self):
        level = torch.tensor([0.01, 0.5, 1.0])
        assert level_weights(FlowConfig(), level) is None
        weights = level_weights(FlowConfig(weighting="velocity"), level)
        torch.testing.assert_close(weights, torch.tensor([100.0, 4.0, 1.0]))
        x0 = clip(1) + 0.1
        x_t = add_noise(clip(1), noise(1), level[1:2].double())
        of_velocity = ((x_t - x0) / 0.5 - (noise(1) - clip(1))).square().mean()
        torch.testing.assert_close(of_velocity, 4 * (x0 - clip(1)).square().mean())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"level_std": 0.0}, "`level_std` must be above 0"),
            ({"prediction": "eps"}, "`prediction` must be 'x0' or 'velocity'"),
        ],
    )
    def test_invalid_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            FlowConfig(**settings)


class TestNetwork:
    @pytest.mark.parametrize("prediction", ["x0", "velocity"])
    def test_it_starts_as_the_linear_map_at_every_level(self, prediction):
        decoder = model(trained=False, prediction=prediction).decoder
        for level in (0.05, 0.7, 1.0):
            video = decoder(latent(), noise(), torch.full((2,), level))
            assert torch.equal(video, decoder.linear(latent()))

    def test_clean_video_and_velocity_agree(self):
        """F of a velocity, v = (x_t - linear(z)) / t + F, and its x0 = x_t - t v; F of x0 is -t times it."""
        inputs = (latent(), noise(), torch.tensor([0.3, 0.8], dtype=torch.float64))
        scale = inputs[2].view(-1, 1, 1, 1, 1)
        decoder = model().decoder
        linear = decoder.linear(latent())
        output = decoder(*inputs) - linear
        assert output.abs().max() > 0.01
        v = (noise() - linear) / scale + output
        torch.testing.assert_close(
            model(prediction="velocity").decoder(*inputs), noise() - scale * v
        )

    def test_gradients_of_a_conditioned_block(self):
        block = add_noise_to_weights(ResidualBlock(2, 2, noise_features=3).double(), 0.3)
        x = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        level = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, level: block(x, None, level), (x, level))
        whole = block(x, None, level)
        assert (whole[1] - block(x[1:], None, level[1:])[0]).abs().max() < 1e-12, (
            "clips are independent"
        )
        assert (block(x, None, level + 1) - whole).abs().max() > 1e-3
        block.gradient_checkpointing = True
        recomputed = torch.autograd.grad(block(x, None, level).square().sum(), level)
        torch.testing.assert_close(recomputed, torch.autograd.grad(whole.square().sum(), level))

    def test_it_is_causal(self):
        z = latent(1).requires_grad_()
        x_t = noise(1).requires_grad_()
        video = model().decoder(z, x_t, torch.full((1,), 0.5))
        last = [math.ceil(index / 4) for index in range(9)]
        assert last_frames_read(video, z) == last
        assert last_frames_read(video, x_t) == [4 * index for index in last]

    @pytest.mark.parametrize("blocks_too", [False, True])
    def test_temporal_chunks_have_the_gradients_of_whole_clips(self, blocks_too):
        vae = model()

        def gradients():
            output = vae(clip(), generator=clip_generators(0, [0, 1], CPU))
            loss = (output.video - clip()).square().mean()
            return [output.video, *torch.autograd.grad(loss, list(vae.decoder.parameters()))]

        whole = gradients()
        vae.enable_temporal_chunks(4)
        if blocks_too:
            vae.enable_gradient_checkpointing()
        torch.testing.assert_close(gradients(), whole, rtol=1e-6, atol=1e-12)


class TestAutoencoder:
    def test_training_denoises_the_video_at_a_random_level(self):
        vae = model()
        video = clip()

        def denoised(seed, **options):
            return vae(video, generator=clip_generators(seed, [4, 5], CPU), **options)

        output = denoised(0)
        assert output.video.shape == video.shape
        assert (output.weight, output.target) == (None, None)
        alone = vae(video[1:], generator=clip_generators(0, [5], CPU))
        torch.testing.assert_close(alone.video[0], output.video[1])
        assert (denoised(1).video - output.video).abs().max() > 1e-3
        assert torch.equal(denoised(0, posterior=vae.encode(video)).video, output.video)
        vae = model(weighting="velocity")
        weight = denoised(0).weight
        assert weight.shape == (2,)
        assert (weight > 1).all()

    def test_evaluation_sees_the_latent_alone(self):
        """A sample of the posterior is not denoised from the video either: that would be no reconstruction."""
        vae = model().eval()
        output = vae(clip(), generator=clip_generators(0, [4, 5], CPU))
        torch.testing.assert_close(output.video, vae.decode(output.latent))
        mode = vae(clip(), sample_posterior=False)
        assert torch.equal(mode.video, vae.decode(mode.latent))
        with torch.no_grad():
            assert torch.equal(vae.train()(clip(), sample_posterior=False).video, mode.video)

    def test_a_generator_draws_the_noise_of_each_clip(self):
        """In training, the noise of validation would be the only noise that terms that decode ever see."""
        vae = model()
        z = latent()
        with pytest.raises(
            ValueError, match="`generator` must be one or several generators in training"
        ):
            vae.decode(z)
        video = vae.decode(z, generator=clip_generators(0, [4, 5], CPU))
        torch.testing.assert_close(
            vae.decode(z[1:], generator=clip_generators(0, [5], CPU))[0], video[1]
        )
        same = vae.decode(
            z[:1].expand(2, -1, -1, -1, -1), generator=clip_generators(0, [4, 5], CPU)
        )
        assert (same[0] - same[1]).abs().max() > 1e-3

    @pytest.mark.parametrize("steps", [1, 4])
    def test_the_same_seed_has_the_same_bits(self, steps):
        vae = model(dtype=torch.float32).eval()
        z = latent().float()
        vae.set_decoding(steps=steps)
        video = vae.decode(z)
        assert torch.equal(vae.decode(z), video)
        torch.testing.assert_close(vae.decode(z.flip(0)[:1])[0], video[1])
        torch.testing.assert_close(vae.decode(z[:, :, :2]), video[:, :, :5])
        vae.enable_temporal_chunks(4)
        torch.testing.assert_close(vae.decode(z), video)
        vae.set_decoding(seed=1)
        assert (vae.decode(z) - video).abs().max() > 1e-3

    def test_a_tile_has_the_levels_of_the_whole_frame(self):
        """A shift for 256 pixels is sqrt(1 / 2) times as large in frames of 16 x 8 pixels, and in their tiles."""
        vae = model(shift=3.0, shift_pixels=256).eval()
        other = model(shift=3.0 / math.sqrt(2)).eval()
        vae.set_decoding(steps=2)
        other.set_decoding(steps=2)
        tile = latent()[..., :1]
        with clip_position(frame_size=(16, 8)):
            torch.testing.assert_close(vae.decode(tile), other.decode(tile))
        assert (vae.decode(tile) - other.decode(tile)).abs().max() > 1e-4, (
            "alone it has levels of its own size"
        )

    def test_several_steps_differ_from_one_and_start_from_the_same_noise(self):
        vae = model(shift=1.0).eval()
        z = latent()
        one = vae.decode(z)
        start = EulerSampler().noise(one.shape, ClipPosition(), CPU)
        torch.testing.assert_close(one, vae.decoder(z, start, torch.ones(2)))
        vae.set_decoding(steps=2)
        half = torch.full((2,), 0.5)
        torch.testing.assert_close(vae.decode(z), vae.decoder(z, add_noise(one, start, half), half))
        assert torch.equal(vae.decode(z, start), vae.decode(z))

    def test_saved_and_loaded(self, tmp_path):
        vae = model(dtype=torch.float32, prediction="velocity", shift=2.0).eval()
        vae.save_pretrained(tmp_path)
        loaded = load_autoencoder(tmp_path).eval()
        assert isinstance(loaded.decoder, FlowDecoder)
        assert loaded.config == vae.config
        assert torch.equal(loaded.decode(latent().float()), vae.decode(latent().float()))
