"""The causal VAE: shapes, causality, gradients, and errors."""

import copy
import inspect
import json
import math
from dataclasses import fields

import pytest
import torch

from telecine.losses import kl_to_standard_normal, posterior_kl
from telecine.models import CausalVAE, DiagonalGaussian
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import FlowConfig
from telecine.settings.validate import settings_of

# Time compression, spatial compression, patch size.
COMPRESSIONS = [(4, 8, 2), (4, 4, 4), (2, 8, 4), (1, 8, 2), (4, 8, 8), (1, 1, 1), (8, 4, 2)]


def config(time=4, space=4, patch=2, **settings):
    multipliers = tuple(min(2**index, 2) for index in range(int(math.log2(space // patch)) + 1))
    small = {"latent_channels": 3, "base_channels": 8, "blocks_per_level": 1, "channel_multipliers": multipliers}
    return CausalVAEConfig(time, space, patch_size=patch, **{**small, **settings})


def model(*, trained=True, **settings):
    """Return a small model; `trained` makes the residual branches, which start at 0, contribute."""
    torch.manual_seed(0)
    vae = CausalVAE(config(**settings))
    if trained:
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return vae


def clip(batch=2, frames=9, height=16, width=8, dtype=torch.float32):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


class TestShapes:
    @pytest.mark.parametrize(("time", "space", "patch"), [*COMPRESSIONS, (6, 4, 4)])
    @pytest.mark.parametrize("num_latent_frames", [1, 3])
    def test_every_compression(self, time, space, patch, num_latent_frames):
        frames = 1 + time * (num_latent_frames - 1)
        vae, video = model(time=time, space=space, patch=patch), clip(batch=1, frames=frames)
        latent = vae.encode(video).mode()
        assert latent.shape == (1, 3, num_latent_frames, 16 // space, 8 // space)
        assert vae.decode(latent).shape == video.shape

    @pytest.mark.parametrize(("height", "width"), [(4, 4), (20, 12)])
    def test_multiples_of_the_compression(self, height, width):
        video = clip(batch=1, frames=5, height=height, width=width)
        assert model()(video).video.shape == video.shape

    def test_the_default_is_4x8x8(self):
        settings = CausalVAEConfig()
        assert (settings.time_compression, settings.spatial_compression, settings.latent_channels) == (4, 8, 16)
        with torch.device("meta"):
            vae = CausalVAE()
        assert vae.encode(torch.empty(1, 3, 17, 256, 256, device="meta")).mean.shape == (1, 16, 5, 32, 32)


class TestCausality:
    @pytest.mark.parametrize(("time", "space", "patch"), COMPRESSIONS)
    def test_a_latent_frame_depends_on_frames_up_to_its_own(self, time, space, patch):
        vae, video = model(time=time, space=space, patch=patch).double(), clip(1, dtype=torch.float64).requires_grad_()
        for index, frame in enumerate(vae.encode(video).mean.unbind(2)):
            (gradient,) = torch.autograd.grad(frame.sum(), video, retain_graph=True)
            assert gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().max().item() == time * index

    @pytest.mark.parametrize(("time", "space", "patch"), COMPRESSIONS)
    def test_an_output_frame_depends_on_latents_up_to_its_own(self, time, space, patch):
        vae, video = model(time=time, space=space, patch=patch).double(), clip(1, dtype=torch.float64)
        latent = vae.encode(video).mode().detach().requires_grad_()
        for index, frame in enumerate(vae.decode(latent).unbind(2)):
            (gradient,) = torch.autograd.grad(frame.sum(), latent, retain_graph=True)
            assert gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().max().item() == math.ceil(index / time)

    @pytest.mark.parametrize("time_kernel", [1, 3])
    def test_other_kernels_are_causal(self, time_kernel):
        vae, video = model(time_kernel=time_kernel).double(), clip(1, dtype=torch.float64).requires_grad_()
        frames = vae(video, sample_posterior=False).video
        (gradient,) = torch.autograd.grad(frames[:, :, :5].sum(), video)
        assert (gradient[:, :, 5:] == 0).all()
        assert (gradient[:, :, :5] != 0).any()

    def test_later_frames_do_not_change_earlier_bits(self):
        vae, video = model(), clip()
        changed = video.clone()
        changed[:, :, 5:] = -changed[:, :, 5:]
        before, after = (vae(each, sample_posterior=False).video for each in (video, changed))
        torch.testing.assert_close(before[:, :, :5], after[:, :, :5], rtol=0, atol=0)
        assert (before[:, :, 5:] != after[:, :, 5:]).any()

    def test_the_latent_of_a_chunk_is_that_of_the_whole_clip(self):
        vae, video = model().double(), clip(frames=13, dtype=torch.float64)
        whole = vae.encode(video).mode()
        for frames in (1, 5, 9):
            chunk = vae.encode(video[:, :, :frames]).mode()
            torch.testing.assert_close(chunk, whole[:, :, : chunk.shape[2]])

    @pytest.mark.parametrize("blocks_too", [False, True])
    @pytest.mark.parametrize("chunk", [4, 8])
    def test_temporal_chunks_have_the_gradients_of_whole_clips(self, chunk, blocks_too):
        vae, video = model().double(), clip(frames=21, dtype=torch.float64)

        def gradients():
            output = vae(video, sample_posterior=False)
            loss = output.video.square().mean() + posterior_kl(output.aux["kl_loss"])
            return [output.video, *torch.autograd.grad(loss, list(vae.parameters()))]

        whole = gradients()
        vae.enable_temporal_chunks(chunk)
        if blocks_too:
            vae.enable_gradient_checkpointing()
        for found, expected in zip(gradients(), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)

    def test_a_temporal_chunk_is_a_multiple_of_the_time_compression(self):
        with pytest.raises(ValueError, match=r"`temporal_chunk` must be a multiple of 4 .* got 6\. Use 8"):
            model().enable_temporal_chunks(6)

    def test_the_first_frame_is_an_image(self):
        vae, video = model().double(), clip(dtype=torch.float64)
        alone = vae(video[:, :, :1], sample_posterior=False).video
        torch.testing.assert_close(vae(video, sample_posterior=False).video[:, :, :1], alone)

    def test_clips_of_a_batch_are_independent(self):
        vae, video = model().double(), clip(batch=3, dtype=torch.float64)
        together = vae(video, sample_posterior=False).video
        apart = torch.cat([vae(each[None], sample_posterior=False).video for each in video])
        torch.testing.assert_close(together, apart)


class TestWithoutAFirstFrameApart:
    @pytest.mark.parametrize("time", [4, 6])
    @pytest.mark.parametrize("decoder", ["direct", "flow"])
    def test_a_latent_frame_has_its_own_frames_alone(self, time, decoder):
        vae = model(time=time, first_frame_apart=False, decoder=decoder).double().eval()
        video = clip(1, frames=3 * time, dtype=torch.float64).requires_grad_()
        latent = vae.encode(video).mean
        assert latent.shape[2] == 3
        for index, frame in enumerate(latent.unbind(2)):
            (gradient,) = torch.autograd.grad(frame.sum(), video, retain_graph=True)
            assert gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().max().item() == time * (index + 1) - 1
        latent = latent.detach().requires_grad_()
        decoded = vae.decode(latent)
        assert decoded.shape == video.shape
        for index, frame in enumerate(decoded.unbind(2)):
            (gradient,) = torch.autograd.grad(frame.sum(), latent, retain_graph=True)
            assert gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().max().item() == index // time

    def test_it_starts_as_the_linear_autoencoder_in_chunks_too(self):
        vae, video = model(trained=False, first_frame_apart=False), clip(frames=12).cumsum(2).div(8)
        linear = vae.linear_autoencoder(*video.shape[2:]).fit([video])
        vae.start_from(linear)
        vae.enable_temporal_chunks(4)
        output = vae(video)
        torch.testing.assert_close(vae(video, sample_posterior=False).video, linear(video), rtol=0, atol=0)
        (output.video.square().mean() + posterior_kl(output.aux["kl_loss"])).backward()
        assert all(weight.grad is not None for weight in vae.parameters()), "a weight that nothing reads"

    def test_sizes_and_configuration(self, tmp_path):
        vae = model(first_frame_apart=False)
        vae.check_clip(8, 4, 4)
        with pytest.raises(ValueError, match=r"`num_frames` must be a multiple of 4 .* got 9\. Use 8,"):
            vae.check_clip(9, 4, 4)
        assert [vae.covering_clip(frames, 4, 4)[0] for frames in (1, 4, 5)] == [4, 4, 8]
        for each in (vae, model()):
            each.save_pretrained(tmp_path / str(each.config.first_frame_apart))
        configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("True", "False")]
        assert [each.get("first_frame_apart") for each in configs] == [None, False]
        loaded = CausalVAE.from_pretrained(tmp_path / "False")
        assert torch.equal(loaded.encode(clip(frames=8)).mean, vae.encode(clip(frames=8)).mean)


class TestForward:
    def test_encodes_samples_and_decodes_in_one_call(self):
        vae, video = model(), clip()
        torch.manual_seed(5)
        once = vae(video)
        torch.manual_seed(5)
        posterior = vae.encode(video)
        torch.testing.assert_close(once.video, vae.decode(once.latent), rtol=0, atol=0)
        torch.testing.assert_close(once.latent, posterior.sample(), rtol=0, atol=0)
        expected = kl_to_standard_normal(mean=posterior.mean, logvar=posterior.logvar)
        assert posterior_kl(once.aux["kl_loss"]) == expected

    def test_the_mode_is_deterministic_and_a_sample_is_not(self):
        vae, video = model(), clip()
        first, second = (vae(video, sample_posterior=False).video for _ in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        assert (vae(video).video != vae(video).video).any()

    def test_sampling_noise_is_small_at_the_start(self):
        posterior = model(trained=False).encode(clip())
        assert (0.5 * posterior.logvar).exp().max() < 0.2

    def test_gradient_reaches_every_parameter_and_pixel(self):
        vae, video = model(), clip().requires_grad_()
        output = vae(video)
        (output.video.square().mean() + posterior_kl(output.aux["kl_loss"])).backward()
        for name, parameter in vae.named_parameters():
            assert parameter.grad.abs().max() > 0, name
        assert (video.grad != 0).all()

    def test_values_outside_the_range_have_gradients(self):
        vae = model()
        with torch.no_grad():
            vae.decoder.network[-1].conv.bias += 10
        output = vae(clip()).video
        assert output.min() > 1
        assert torch.autograd.grad(output.mean(), vae.last_layer)[0].abs().max() > 0

    def test_the_last_layer_is_what_the_network_adds_to_the_linear_decoder(self):
        vae = model()
        assert any(vae.last_layer is parameter for parameter in vae.parameters())
        assert vae.last_layer.shape[0] == 3 * 4 * 2**2
        latent = vae.encode(clip()).mode()
        with torch.no_grad():
            vae.last_layer.zero_()
        added = vae.decode(latent) - vae.decoder.linear(latent)
        torch.testing.assert_close(added[:, :, 1:], added[:, :, 1:5, :2, :2].repeat(1, 1, 2, 8, 4))
        assert added.abs().min() > 0

    def test_runs_under_bfloat16_autocast(self):
        vae, video = model(), clip()
        exact = vae(video, sample_posterior=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = vae(video, sample_posterior=False)
        output.video.float().square().mean().backward()
        assert output.aux["kl_loss"].logvar.dtype == torch.float32
        torch.testing.assert_close(output.video.float(), exact.video, rtol=0.1, atol=0.1)
        assert vae.last_layer.grad.isfinite().all()

    def test_runs_with_bfloat16_weights(self):
        vae = model().bfloat16()
        assert vae(clip().bfloat16()).video.dtype == torch.bfloat16
        assert torch.equal(vae.encode(clip()).mean, vae.encode(clip().bfloat16()).mean)

    def test_a_copy_after_a_step_is_independent(self):
        vae, video = model(), clip()
        vae(video).video.mean().backward()
        copied = copy.deepcopy(vae)
        expected = vae(video, sample_posterior=False).video
        with torch.no_grad():
            vae.last_layer.zero_()
        torch.testing.assert_close(copied(video, sample_posterior=False).video, expected, rtol=0, atol=0)

    def test_gradient_checkpointing_keeps_fewer_activations_and_the_same_gradients(self):
        def run(vae):
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
                loss = vae(clip(), sample_posterior=False).video.square().mean()
            return sum(kept), torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)

        ordinary, recomputed = model(), model()
        recomputed.enable_gradient_checkpointing()
        (kept, gradients), (few, same) = run(ordinary), run(recomputed)
        torch.testing.assert_close(same, gradients, rtol=0, atol=0)
        assert few < 0.6 * kept


class TestLinearStart:
    def test_the_model_starts_as_the_linear_autoencoder_and_learns_what_is_left(self):
        vae, video = model(trained=False, latent_channels=4), clip().cumsum(3).div(4)
        linear = vae.linear_autoencoder(*video.shape[2:]).fit([video])
        vae.start_from(linear)
        output = vae(video, sample_posterior=False).video
        torch.testing.assert_close(output, linear(video), rtol=0, atol=0)
        torch.testing.assert_close(vae.encode(video).mode(), linear.encode(video), rtol=0, atol=0)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
        before = error = (output - video).square().mean()
        for _ in range(20):
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            error = (vae(video, sample_posterior=False).video - video).square().mean()
        assert error < 0.9 * before

    def test_the_linear_autoencoder_is_copied(self):
        vae = model(latent_channels=4)
        linear = vae.linear_autoencoder(9, 16, 8).fit([clip()])
        vae.start_from(linear)
        with torch.no_grad():
            linear.decoder.first.bias += 1
        assert (vae.decoder.linear.first.bias != linear.decoder.first.bias).all()

    def test_latents_are_frozen_with_the_encoder(self):
        names = {name.split(".")[0] for name, _ in model().named_parameters()}
        assert names == {"encoder", "decoder"}


class TestClips:
    @pytest.mark.parametrize(("frames", "nearest"), [(16, 17), (14, 13), (0, 1), (-3, 1)])
    def test_the_error_contains_the_nearest_number_of_frames(self, frames, nearest):
        with pytest.raises(ValueError, match=rf"4k\+1 for this model, but got {frames}. Use {nearest},"):
            model().check_clip(frames, 16, 16)

    @pytest.mark.parametrize(("height", "nearest"), [(62, 64), (61, 60), (0, 4)])
    def test_the_error_contains_the_nearest_size(self, height, nearest):
        with pytest.raises(ValueError, match=f"`height` .* a multiple of 4 .* got {height}. Use {nearest},"):
            model().check_clip(17, height, 16)
        with pytest.raises(ValueError, match=f"`width` .* a multiple of 4 .* got {height}. Use {nearest},"):
            model().check_clip(17, 16, height)

    @pytest.mark.parametrize(("time", "frames"), [(4, 1), (4, 17), (1, 2)])
    def test_accepted_sizes(self, time, frames):
        model(time=time).check_clip(frames, 4, 256)

    @pytest.mark.parametrize(("size", "covering"), [((1, 1, 8), (1, 4, 8)), ((6, 5, 9), (9, 8, 12))])
    def test_the_smallest_size_that_covers(self, size, covering):
        assert model().covering_clip(*size) == covering

    @pytest.mark.parametrize(
        ("video", "message"),
        [
            (torch.zeros(3, 9, 16, 16), "Add a batch axis"),
            (torch.zeros(1, 1, 9, 16, 16), "RGB"),
            (torch.zeros(1, 3, 8, 16, 16), "got 8. Use 9,"),
            (torch.zeros(1, 3, 9, 18, 16), "got 18. Use 20,"),
        ],
    )
    def test_forward_refuses_invalid_videos(self, video, message):
        with pytest.raises(ValueError, match=message):
            model()(video)

    @pytest.mark.parametrize("shape", [(3, 1, 2, 2), (1, 4, 1, 2, 2)])
    def test_decode_refuses_invalid_latents(self, shape):
        with pytest.raises(ValueError, match="`latent` must be"):
            model().decode(torch.zeros(shape))


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"time_compression": 0}, "`time_compression` must be at least 1"),
            ({"time_compression": 257}, "`time_compression` must be at most 256, but got 257"),
            ({"spatial_compression": 6}, "`spatial_compression` must be a power of two"),
            ({"patch_size": 1.5}, "`patch_size` must be a whole number"),
            ({"patch_size": 16}, "`patch_size` must be at most `spatial_compression`"),
            ({"latent_channels": 0}, "`latent_channels` must be at least 1"),
            ({"base_channels": True}, "`base_channels` must be a number, but got True"),
            ({"blocks_per_level": "two"}, "`blocks_per_level` must be a whole number"),
            ({"channel_multipliers": 3}, "`channel_multipliers` must be a list, but got 3"),
            ({"time_kernel": 0}, "`time_kernel` must be at least 1"),
            ({"channel_multipliers": (1, 2, 2)}, r"one value for each level, of which there are 2, .*Use \(1, 2\)"),
            ({"channel_multipliers": (1, 3)}, "`channel_multipliers.1` must be a power of two"),
            ({"patch_size": 512}, "`patch_size` must be at most 256"),
            ({"blocks_per_level": 10**7}, "`blocks_per_level` must be at most 256, but got 10000000"),
            ({"base_channels": 10**7}, "`base_channels` must be at most 65536, but got 10000000"),
            ({"bottleneck": "vq"}, "`bottleneck` must be 'gaussian', 'fsq' or 'lfq'"),
            ({"fsq_levels": 8}, "`fsq_levels` must be a list, but got 8"),
            ({"fsq_levels": (8, 2)}, "`fsq_levels.1` must be at least 3, but got 2"),
            ({"lfq_bits": 0}, "`lfq_bits` must be at least 1"),
            ({"lfq_entropy_weight": -1}, "`lfq_entropy_weight` must be at least 0"),
            ({"lfq_commitment_weight": float("nan")}, "`lfq_commitment_weight` must be a finite number"),
            (
                {"bottleneck": "fsq", "fsq_levels": (8,) * 8},
                "`fsq_levels` must be those of a codebook of at most 262144",
            ),
            ({"lfq_bits": 10**9}, "`lfq_bits` must be at most 18, but got 1000000000"),
            (
                {"bottleneck": "fsq", "latent_channels": 6},
                "`latent_channels` must be a multiple of the 4 channels of a code, see `fsq_levels`, but got .* Use 8",
            ),
            ({"channel_multipliers": (1, 8)}, "change by at most 4 where"),
            ({"channel_multipliers": (8, 1)}, "change by at most 4 where"),
        ],
    )
    def test_invalid_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            CausalVAEConfig(**settings)

    def test_every_setting_is_documented(self):
        found = list(settings_of(CausalVAEConfig))
        names = [each.name for each in found if "." not in each.name]
        assert names == [*inspect.signature(CausalVAEConfig).parameters]
        assert sum(each.name.startswith("flow.") for each in found) == len(fields(FlowConfig))
        assert all(each.text for each in found)

    def test_a_list_of_multipliers_becomes_a_tuple(self):
        assert hash(CausalVAEConfig(channel_multipliers=[1, 2])) == hash(CausalVAEConfig())
        assert CausalVAEConfig(fsq_levels=[8, 5, 5, 5]) == CausalVAEConfig()


class TestChannels:
    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_any_number(self, channels):
        vae, video = model(in_channels=channels), torch.rand(1, channels, 5, 8, 8)
        assert vae.in_channels == channels
        assert vae(video).video.shape == video.shape
        assert vae.linear_autoencoder(5, 8, 8).fit([video])(video).shape == video.shape

    def test_another_number_is_an_error(self):
        with pytest.raises(ValueError, match=r"`video` must be of shape \(B, 4, T, H, W\)"):
            model(in_channels=4)(clip(frames=5))

    def test_only_other_models_than_rgb_name_it_in_their_configuration(self, tmp_path):
        for channels in (3, 4):
            model(in_channels=channels).save_pretrained(tmp_path / str(channels))
        configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("3", "4")]
        assert [config.get("in_channels") for config in configs] == [None, 4]
        assert configs[0].keys() == configs[1].keys() - {"in_channels"}
        assert CausalVAE.from_pretrained(tmp_path / "4").in_channels == 4


class TestAutocast:
    """Weights are cast together, which changes no bit."""

    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("chunk", [None, 4, 8])
    def test_the_same_bits(self, checkpointing, chunk):
        vae, video = model(), clip(frames=17)
        if checkpointing:
            vae.enable_gradient_checkpointing()
        if chunk is not None:
            vae.enable_temporal_chunks(chunk)

        def gradients(mean, logvar, output):
            loss = output.square().mean() + mean.square().mean() + logvar.mean()
            return [mean, output, *torch.autograd.grad(loss, [*vae.parameters()])]

        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(video)
            found = gradients(posterior.mean, posterior.logvar, vae.decode(posterior.mean))
            expected = DiagonalGaussian(**dict(zip(("mean", "logvar"), vae.encoder(video), strict=True)))
            expected = gradients(expected.mean, expected.logvar, vae.decoder(expected.mean))
        assert all(map(torch.equal, found, expected))

    def test_the_gradient_of_the_last_layer_needs_no_other(self):
        vae, seen = model(), []
        vae.decoder.network[0].register_forward_hook(lambda *args: args[-1].register_hook(seen.append) and None)
        with torch.autocast("cpu", torch.bfloat16):
            output = vae(clip()).video
        (gradient,) = torch.autograd.grad(output.square().mean(), vae.last_layer, retain_graph=True)
        assert gradient.abs().max() > 0
        assert not seen
        output.mean().backward()
        assert len(seen) == 1
