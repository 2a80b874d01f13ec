"""The causal VAE: shapes, causality, gradients, and errors."""

import copy
import json
import math

import pytest
import torch

from telecine.losses import posterior_kl
from telecine.models import CausalVAE, DiagonalGaussian
from telecine.settings import CausalVAEConfig

from .helpers import add_noise_to_weights, last_frames_read

# Time compression, spatial compression, patch size.
COMPRESSIONS = [(4, 8, 2), (4, 4, 4), (2, 8, 4), (1, 8, 2), (4, 8, 8), (1, 1, 1), (8, 4, 2)]


def config(time=4, space=4, patch=2, **settings):
    multipliers = tuple(min(2**index, 2) for index in range(int(math.log2(space // patch)) + 1))
    small = {
        "latent_channels": 3,
        "base_channels": 8,
        "blocks_per_level": 1,
        "channel_multipliers": multipliers,
    }
    return CausalVAEConfig(time, space, patch_size=patch, **{**small, **settings})


def model(*, trained=True, dtype=torch.float32, **settings):
    """Return a small model; `trained` makes the residual branches, which start at 0, contribute."""
    torch.manual_seed(0)
    vae = CausalVAE(config(**settings))
    if trained:
        add_noise_to_weights(vae)
    return vae.to(dtype)


def clip(batch=2, frames=9, height=16, width=8, dtype=torch.float32):
    return (
        torch.rand(
            batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype
        )
        * 2
        - 1
    )


def test_the_default_is_4x8x8():
    with torch.device("meta"):
        vae = CausalVAE()
    assert vae.encode(torch.empty(1, 3, 17, 256, 256, device="meta")).mean.shape == (
        1,
        16,
        5,
        32,
        32,
    )


class TestCausality:
    @pytest.mark.parametrize(
        ("time", "space", "patch", "time_kernel"), [*((*c, 3) for c in COMPRESSIONS), (4, 4, 2, 1)]
    )
    def test_frames_depend_on_frames_up_to_their_own(self, time, space, patch, time_kernel):
        vae = model(
            time=time, space=space, patch=patch, time_kernel=time_kernel, dtype=torch.float64
        )
        video = clip(1, dtype=torch.float64).requires_grad_()
        latent = vae.encode(video).mean
        assert latent.shape == (1, 3, 1 + 8 // time, 16 // space, 8 // space)
        assert vae.decode(latent).shape == video.shape
        assert last_frames_read(latent, video) == list(range(0, 9, time))
        latent = latent.detach().requires_grad_()
        assert last_frames_read(vae.decode(latent), latent) == [
            math.ceil(index / time) for index in range(9)
        ]

    @pytest.mark.parametrize("time", [4, 6])
    @pytest.mark.parametrize("decoder", ["direct", "flow"])
    def test_a_latent_frame_without_a_first_frame_apart_has_its_own_frames_alone(
        self, time, decoder
    ):
        vae = model(time=time, first_frame_apart=False, decoder=decoder, dtype=torch.float64).eval()
        video = clip(1, frames=3 * time, dtype=torch.float64).requires_grad_()
        latent = vae.encode(video).mean
        assert last_frames_read(latent, video) == [time - 1, 2 * time - 1, 3 * time - 1]
        latent = latent.detach().requires_grad_()
        assert last_frames_read(vae.decode(latent), latent) == [
            index // time for index in range(3 * time)
        ]

    @pytest.mark.parametrize("num_frames", [1, 5, 9])
    def test_the_first_frames_and_single_clips_are_as_those_of_the_whole(self, num_frames):
        vae = model(dtype=torch.float64)
        video = clip(frames=13, dtype=torch.float64)
        whole = vae(video, sample_posterior=False)
        part = vae(video[1:, :, :num_frames], sample_posterior=False)
        torch.testing.assert_close(part.latent, whole.latent[1:, :, : part.latent.shape[2]])
        torch.testing.assert_close(part.video, whole.video[1:, :, :num_frames])

    @pytest.mark.parametrize("blocks_too", [False, True])
    @pytest.mark.parametrize("chunk", [4, 8])
    def test_temporal_chunks_have_the_gradients_of_whole_clips(self, chunk, blocks_too):
        convolutions = ("depthwise", "2+1d")  # of the decoder; the encoder has "3d"
        vae = model(decoder_convolutions=convolutions, dtype=torch.float64)
        video = clip(frames=21, dtype=torch.float64)

        def gradients():
            output = vae(video, sample_posterior=False)
            loss = output.video.square().mean() + posterior_kl(output.aux["kl_loss"])
            return [output.video, *torch.autograd.grad(loss, list(vae.parameters()))]

        whole = gradients()
        vae.enable_temporal_chunks(chunk)
        if blocks_too:
            vae.enable_gradient_checkpointing()
        torch.testing.assert_close(gradients(), whole, rtol=1e-6, atol=1e-12)

    def test_a_temporal_chunk_is_a_multiple_of_the_time_compression(self):
        with pytest.raises(
            ValueError, match=r"`temporal_chunk` must be a multiple of 4 .* got 6\. Use 8"
        ):
            model().enable_temporal_chunks(6)


class TestForward:
    def test_encodes_samples_and_decodes_in_one_call(self):
        vae = model()
        video = clip()
        torch.manual_seed(5)
        once = vae(video)
        torch.manual_seed(5)
        posterior = vae.encode(video)
        torch.testing.assert_close(once.video, vae.decode(once.latent), rtol=0, atol=0)
        torch.testing.assert_close(once.latent, posterior.sample(), rtol=0, atol=0)
        assert posterior_kl(once.aux["kl_loss"]) == posterior_kl(posterior)
        assert torch.equal(vae(video, sample_posterior=False).latent, posterior.mode())

    def test_sampling_noise_is_small_at_the_start(self):
        posterior = model(trained=False).encode(clip())
        assert (0.5 * posterior.logvar).exp().max() < 0.2

    def test_gradient_reaches_every_parameter_and_pixel(self):
        vae = model()
        video = clip().requires_grad_()
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
        assert vae.last_layer.shape[0] == 3 * 4 * 2**2
        latent = vae.encode(clip()).mode()
        with torch.no_grad():
            vae.last_layer.zero_()
        added = vae.decode(latent) - vae.decoder.linear(latent)
        torch.testing.assert_close(added[:, :, 1:], added[:, :, 1:5, :2, :2].repeat(1, 1, 2, 8, 4))
        assert added.abs().min() > 0

    def test_runs_under_bfloat16_autocast(self):
        vae = model()
        exact = vae(clip(), sample_posterior=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = vae(clip(), sample_posterior=False)
        output.video.float().square().mean().backward()
        assert output.aux["kl_loss"].logvar.dtype == torch.float32
        torch.testing.assert_close(output.video.float(), exact.video, rtol=0.1, atol=0.1)
        assert vae.last_layer.grad.isfinite().all()

    def test_runs_with_bfloat16_weights(self):
        vae = model().bfloat16()
        assert vae(clip().bfloat16()).video.dtype == torch.bfloat16
        assert torch.equal(vae.encode(clip()).mean, vae.encode(clip().bfloat16()).mean)

    def test_a_copy_after_a_step_is_independent(self):
        vae = model()
        vae(clip()).video.mean().backward()
        copied = copy.deepcopy(vae)
        expected = vae(clip(), sample_posterior=False).video
        with torch.no_grad():
            vae.last_layer.zero_()
        assert torch.equal(copied(clip(), sample_posterior=False).video, expected)

    def test_gradient_checkpointing_keeps_fewer_activations_and_the_same_gradients(self):
        def run(vae):
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x: kept.append(x.numel()) or x, lambda x: x
            ):
                loss = vae(clip(), sample_posterior=False).video.square().mean()
            return sum(kept), torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)

        recomputed = model()
        recomputed.enable_gradient_checkpointing()
        most, expected = run(model())
        fewer, gradients = run(recomputed)
        torch.testing.assert_close(gradients, expected, rtol=0, atol=0)
        assert fewer < 0.6 * most


class TestLinearStart:
    @pytest.mark.parametrize("first_frame_apart", [True, False])
    def test_the_model_starts_as_the_linear_autoencoder_and_learns_what_is_left(
        self, first_frame_apart
    ):
        vae = model(trained=False, latent_channels=4, first_frame_apart=first_frame_apart)
        video = clip(frames=9 if first_frame_apart else 12).cumsum(3).div(4)
        linear = vae.linear_autoencoder(*video.shape[2:]).fit([video])
        expected = linear(video)
        latent = linear.encode(video)
        vae.copy_linear(linear)
        with torch.no_grad():
            linear.decoder.rest.bias += 1  # which the model has copied
        vae.enable_temporal_chunks(4)
        output = vae(video, sample_posterior=False)
        torch.testing.assert_close(output.video, expected, rtol=0, atol=0)
        torch.testing.assert_close(output.latent, latent, rtol=0, atol=0)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
        before = error = (output.video - video).square().mean()
        for _ in range(3):
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            error = (vae(video, sample_posterior=False).video - video).square().mean()
        assert error < 0.9 * before
        (error + posterior_kl(vae(video).aux["kl_loss"])).backward()
        assert all(weight.grad is not None for weight in vae.parameters()), (
            "a weight that nothing reads"
        )


class TestClips:
    @pytest.mark.parametrize(
        ("size", "message"),
        [
            ((16, 16, 16), r"`num_frames` must be 4k\+1 for this model, but got 16. Use 17,"),
            ((3, 16, 16), "but got 3. Use 5, the nearest accepted value"),
            ((2, 16, 16), "but got 2. Use 5, the nearest accepted value above 1"),
            ((17, 62, 16), "`height` .* a multiple of 4 .* got 62. Use 64,"),
            ((17, 16, 61), "`width` .* a multiple of 4 .* got 61. Use 60,"),
        ],
    )
    def test_the_error_contains_the_nearest_size(self, size, message):
        with pytest.raises(ValueError, match=message):
            model().check_clip(*size)

    @pytest.mark.parametrize(("time", "frames"), [(4, 1), (4, 17), (1, 2)])
    def test_accepted_sizes(self, time, frames):
        model(time=time).check_clip(frames, 4, 256)

    @pytest.mark.parametrize(
        ("size", "covering"), [((1, 1, 8), (1, 4, 8)), ((6, 5, 9), (9, 8, 12))]
    )
    def test_the_smallest_size_that_covers(self, size, covering):
        assert model().covering_clip(*size) == covering

    def test_sizes_and_configuration_without_a_first_frame_apart(self, tmp_path):
        vae = model(first_frame_apart=False)
        with pytest.raises(
            ValueError, match=r"`num_frames` must be a multiple of 4 .* got 9\. Use 8,"
        ):
            vae.check_clip(9, 4, 4)
        assert [vae.covering_clip(frames, 4, 4)[0] for frames in (1, 4, 5)] == [4, 4, 8]
        vae.save_pretrained(tmp_path)
        loaded = CausalVAE.from_pretrained(tmp_path)
        assert torch.equal(loaded.encode(clip(frames=8)).mean, vae.encode(clip(frames=8)).mean)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((3, 9, 16, 16), "Add a batch axis"),
            ((1, 1, 9, 16, 16), "RGB"),
            ((1, 3, 8, 16, 16), "got 8. Use 9,"),
            ((1, 3, 9, 18, 16), "got 18. Use 20,"),
        ],
    )
    def test_invalid_videos_are_refused(self, shape, message):
        with pytest.raises(ValueError, match=message):
            model()(torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(3, 1, 2, 2), (1, 4, 1, 2, 2)])
    def test_invalid_latents_are_refused(self, shape):
        with pytest.raises(ValueError, match="`latent` must be"):
            model().decode(torch.zeros(shape))


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"time_compression": 257}, "`time_compression` must be at most 256, but got 257"),
            ({"spatial_compression": 6}, "`spatial_compression` must be a power of two"),
            ({"patch_size": 16}, "`patch_size` must be at most `spatial_compression`"),
            ({"patch_size": 512}, "`patch_size` must be at most 256"),
            ({"base_channels": 10**7}, "`base_channels` must be at most 65536"),
            ({"blocks_per_level": 10**7}, "`blocks_per_level` must be at most 256"),
            (
                {"channel_multipliers": (1, 2, 2)},
                r"one value for each level, of which there are 2, .*Use \(1, 2\)",
            ),
            ({"channel_multipliers": (1, 3)}, "`channel_multipliers.1` must be a power of two"),
            ({"channel_multipliers": (1, 8)}, "change by at most 4 where"),
            ({"channel_multipliers": (8, 1)}, "change by at most 4 where"),
            ({"fsq_levels": (8, 2)}, "`fsq_levels.1` must be at least 3, but got 2"),
            (
                {"bottleneck": "fsq", "fsq_levels": (8,) * 8},
                "`fsq_levels` must be .* at most 262144",
            ),
            (
                {"bottleneck": "fsq", "latent_channels": 6},
                "a multiple of the 4 channels of a code, .* Use 8",
            ),
            ({"lfq_bits": 10**9}, "`lfq_bits` must be at most 18"),
            ({"decoder_convolutions": ("3d",)}, "one kind for each level, of which there are 2"),
            (
                {"decoder_convolutions": ("2+1d", "3d")},
                "3d, 2d or depthwise where kernels have one",
            ),
            (
                {"decoder_convolutions": ("3d", "2+1d"), "time_kernel": 1},
                "one frame, but got 2.1d for level 1",
            ),
        ],
    )
    def test_invalid_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            CausalVAEConfig(**settings)

    @pytest.mark.parametrize(
        ("settings", "value"),
        [
            ({"in_channels": 4}, 4),
            ({"first_frame_apart": False}, False),
            ({"nested_channels": (1,)}, [1]),
            ({"decoder": "flow"}, "flow"),
            ({"decoder_convolutions": ("depthwise", "2d")}, ["depthwise", "2d"]),
        ],
    )
    def test_only_models_that_differ_from_those_of_before_have_a_new_key(
        self, settings, value, tmp_path
    ):
        (name,) = settings
        configs = []
        for changes in ({}, settings):
            CausalVAE(config(**changes)).save_pretrained(tmp_path)
            configs.append(json.loads((tmp_path / "config.json").read_text()))
        assert (name in configs[0], configs[1][name]) == (False, value)
        assert configs[1].keys() - configs[0].keys() <= {name, "flow"}
        assert CausalVAE.from_pretrained(tmp_path).config == config(**settings)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(channels):
    vae = model(in_channels=channels)
    video = torch.rand(1, channels, 5, 8, 8)
    assert vae.in_channels == channels
    assert vae(video).video.shape == video.shape
    assert vae.linear_autoencoder(5, 8, 8).fit([video])(video).shape == video.shape
    with pytest.raises(
        ValueError, match=rf"`video` must be of shape \(B, {channels}, T, H, W\)|grey"
    ):
        vae(clip(frames=5))


class TestAutocast:
    """Weights are cast together, which changes no bit."""

    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("chunk", [None, 4, 8])
    def test_the_same_bits(self, checkpointing, chunk):
        vae = model()
        video = clip(frames=17)
        if checkpointing:
            vae.enable_gradient_checkpointing()
        if chunk is not None:
            vae.enable_temporal_chunks(chunk)

        def gradients(mean, logvar, output):
            loss = output.square().mean() + mean.square().mean() + logvar.mean()
            return [mean, output, *torch.autograd.grad(loss, [*vae.parameters()])]

        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(video)
            actual = gradients(posterior.mean, posterior.logvar, vae.decode(posterior.mean))
            mean, logvar = vae.encoder(video)
            separate = DiagonalGaussian(mean=mean, logvar=logvar)
            expected = gradients(separate.mean, separate.logvar, vae.decoder(separate.mean))
        assert all(map(torch.equal, actual, expected))

    def test_the_gradient_of_the_last_layer_needs_no_other(self):
        vae = model()
        seen = []
        vae.decoder.network[0].register_forward_hook(
            lambda *args: args[-1].register_hook(seen.append) and None
        )
        with torch.autocast("cpu", torch.bfloat16):
            output = vae(clip()).video
        (gradient,) = torch.autograd.grad(output.square().mean(), vae.last_layer, retain_graph=True)
        assert gradient.abs().max() > 0
        assert not seen
        output.mean().backward()
        assert len(seen) == 1
