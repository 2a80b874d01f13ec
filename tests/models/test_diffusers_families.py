"""Where single diffusers classes differ from the rest. Each test first shows the class's own behaviour."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch

from telecine.base.randomness import clip_generators
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.diffusers.adapter import LARGEST_LEVEL
from telecine.models.flow import Sampler
from telecine.models.interface import ClipPosition

from .tiny_models import CLIPS, ltx_video, newer, qwen_image21, tiny_clip, tiny_model

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["wan", *(pytest.param(name, marks=slow) for name in ("wan_residual", "qwen_image", "qwen_image21"))]
)
def test_decoders_that_clamp_do_not(name):
    raw, video = tiny_model(name), tiny_clip(name)
    model = DiffusersAutoencoder(raw)
    with torch.no_grad():
        model.last_layer.mul_(1000)
    latent = model.encode(video).mode()
    of_class = latent[:, :, :1] if name == "qwen_image21" else latent  # whose clips have one frame
    assert raw.decode(of_class).sample.abs().max() == 1
    assert model.decode(latent).abs().max() > 1


@slow
def test_hunyuan_video_is_not_tiled_in_time_above_16_frames():
    raw, video = tiny_model("hunyuan_video"), torch.rand(1, 3, 33, 16, 16) * 2 - 1
    tiled = raw(video).sample
    model = DiffusersAutoencoder(raw)
    found = model(video, sample_posterior=False).video
    assert (found - tiled).abs().max() > 1e-3
    mean, _ = raw.quant_conv(raw.encoder(video)).chunk(2, dim=1)
    torch.testing.assert_close(found, raw.decoder(raw.post_quant_conv(mean)))


def test_hunyuan_video15_supports_batches():
    raw, video = tiny_model("hunyuan_video15"), tiny_clip("hunyuan_video15", batch=2)
    with pytest.raises(RuntimeError):
        raw(video)
    both = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    assert both.shape == video.shape


@slow
def test_minimax_h3_does_not_tile_large_frames():
    raw, video = tiny_model("minimax_h3"), torch.rand(1, 3, 22, 64, 64) * 2 - 1
    raw.tile_sample_min_height = raw.tile_sample_min_width = 32
    raw.tile_sample_min_overlap_height = raw.tile_sample_min_overlap_width = 16
    assert raw.use_tiling
    tiled = raw.encode(video).latent_dist.mode()
    DiffusersAutoencoder(raw)
    assert not raw.use_tiling
    assert (raw.encode(video).latent_dist.mode() - tiled).abs().max() > 1e-3


@slow
def test_minimax_h3_has_colours_normalised_with_imagenets_statistics():
    raw = tiny_model("minimax_h3")
    model = DiffusersAutoencoder(raw)
    # The model sees the mean colour of ImageNet as 0.
    video = (torch.tensor([0.485, 0.456, 0.406]) * 2 - 1).view(1, 3, 1, 1, 1).expand(1, 3, *CLIPS["minimax_h3"])
    latent = model.encode(video).mode()
    torch.testing.assert_close(latent, raw.encode(torch.zeros_like(video)).latent_dist.mode())
    with torch.no_grad():
        raw.decoder.proj_out.weight.zero_()
        raw.decoder.proj_out.bias.zero_()
    torch.testing.assert_close(model.decode(latent), video)


@pytest.mark.slow
def test_allegro_works_without_tiles():
    raw, video = tiny_model("allegro"), tiny_clip("allegro")
    with pytest.raises(NotImplementedError):
        raw.encode(video)
    assert DiffusersAutoencoder(raw)(video).video.shape == video.shape


def test_vidtok_does_not_cache_tensors_of_the_graph():
    raw, video = tiny_model("vidtok"), tiny_clip("vidtok")
    raw(video)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(raw)
    copy.deepcopy(DiffusersAutoencoder(raw))


@slow
def test_vidtok_pads_with_the_first_frame_before_encode():
    raw, video = tiny_model("vidtok"), tiny_clip("vidtok")
    assert raw.decode(raw.encode(video).latent_dist.mode()).shape != video.shape
    assert DiffusersAutoencoder(raw)(video).video.shape == video.shape


@slow
def test_vidtok_without_causality_supports_multiples_of_16_frames(monkeypatch):
    monkeypatch.setattr("telecine.models.clip_sizes._LARGE_SIDES", (8,))
    raw = newer("AutoencoderVidTok")(ch=8, ch_mult=[1, 1, 1, 1], z_channels=4, num_res_blocks=1, is_causal=False)
    model = DiffusersAutoencoder(raw)
    lengths = (1, 4, 5, 8, 12, 15, 16, 17, 24, 32)
    assert [length for length in lengths if model.sizes.reproduces_length(length)] == [16, 32]
    encoder = model.linear_autoencoder(16, 16, 16).encoder
    assert (encoder.time, encoder.first) == (4, None)
    assert DiffusersAutoencoder(tiny_model("vidtok")).linear_autoencoder(5, 16, 16).encoder.first is not None


def test_magvit_works_after_an_error():
    raw, video = tiny_model("magvit"), tiny_clip("magvit")
    expected = raw(video).sample
    with pytest.raises((RuntimeError, ValueError)):
        raw.encode(torch.zeros(1, 3, 4, 16, 16))  # the second chunk is too short
    with pytest.raises((RuntimeError, ValueError)):
        raw(torch.zeros(1, 3, 5, 32, 32))
    model = DiffusersAutoencoder(tiny_model("magvit"))
    with pytest.raises((RuntimeError, ValueError)):
        model.family.encode(model.module, torch.zeros(1, 3, 4, 16, 16))
    assert model(torch.zeros(1, 3, 5, 32, 32)).video.shape == (1, 3, 5, 32, 32)
    torch.testing.assert_close(model(video, sample_posterior=False).video, expected)


def test_ltx_with_timestep_is_told_that_the_latent_has_no_noise():
    raw, video = tiny_model("ltx_video_with_timestep"), tiny_clip("ltx_video_with_timestep", batch=2)
    with pytest.raises((TypeError, AttributeError)):
        raw(video)
    model = DiffusersAutoencoder(raw)
    expected = raw.decode(model.encode(video).mode(), temb=torch.zeros(2)).sample
    torch.testing.assert_close(model(video, sample_posterior=False).video, expected)


def levels_told(model, latent, *, seed=None):
    """Return the latents and the levels that a model passes to its decoder in an update, or else in decoding."""
    told = []
    hook = model.module.decoder.register_forward_pre_hook(lambda _, inputs: told.append(inputs))
    if seed is None:
        model.decode(latent)
    else:
        model.denoise(latent, None, clip_generators(seed, range(len(latent)), latent.device)).video.sum().backward()
    hook.remove()
    return told[0]


def test_ltx_with_timestep_trains_at_random_levels_up_to_a_fifth():
    model = DiffusersAutoencoder(tiny_model("ltx_video_with_timestep"))
    latent = torch.randn(64, 8, 1, 1, 1)
    noisy, levels = levels_told(model, latent, seed=0)
    assert 0 <= levels.min() < 0.05 < 0.15 < levels.max() <= LARGEST_LEVEL == 0.2
    assert levels.mean() == pytest.approx(0.1, abs=0.02)
    noise = (noisy - (1 - levels.view(-1, 1, 1, 1, 1)) * latent) / levels.view(-1, 1, 1, 1, 1)
    assert noise.std() == pytest.approx(1.0, abs=0.1)
    again = levels_told(model, latent[3:5], seed=0)[1]
    assert torch.equal(again, levels[:2]), "a function of the seed and the clip's number"
    assert model.module.decoder.time_embedder.timestep_embedder.linear_1.weight.grad.abs().sum() > 0


def test_an_update_of_ltx_with_timestep_denoises_and_validation_does_not():
    model = DiffusersAutoencoder(tiny_model("ltx_video_with_timestep"))
    video = tiny_clip("ltx_video_with_timestep")
    told = []
    model.check_clip(*video.shape[2:])
    model.module.decoder.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1].item()))
    output = model(video, generator=torch.Generator().manual_seed(0))
    model(video, sample_posterior=False)
    assert told[0] > 0 == told[1]
    assert set(output.aux) == {"kl_loss"}
    assert output.latent is not None


def test_ltx_decodes_at_a_level_as_its_pipeline():
    raw = ltx_video(timestep_conditioning=True, decoder_inject_noise=(True,) * 5)
    for weight in raw.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model = DiffusersAutoencoder(raw).eval()
    model.set_decoding(level=0.05, seed=3)
    model.position = ClipPosition(first_frame=9)
    latent = torch.randn(2, 8, 2, 2, 2)
    noisy, levels = levels_told(model, latent)
    assert levels.tolist() == pytest.approx([0.05, 0.05])
    noise = Sampler(seed=3).noise(latent.shape, ClipPosition(first_frame=2), latent.device)
    torch.testing.assert_close(noisy, 0.95 * latent + 0.05 * noise)
    assert torch.equal(model.decode(latent), model.decode(latent)), "the noise that it injects is the same"
    torch.manual_seed(3)
    assert torch.equal(model.decode(latent), raw.decode(noisy, levels).sample)


def test_ltx_that_injects_noise_is_reproducible_with_a_seed():
    model = DiffusersAutoencoder(ltx_video(decoder_inject_noise=(True,) * 5))
    video = tiny_clip("ltx_video")
    torch.manual_seed(1)
    first = model(video).video
    torch.manual_seed(1)
    torch.testing.assert_close(model(video).video, first, rtol=0, atol=0)


def test_kvae_ignores_its_constant_variance_of_1():
    raw, video = tiny_model("kvae_video"), tiny_clip("kvae_video")
    noisy = raw.encode(video).latent_dist
    assert (noisy.sample() - noisy.mode()).std() > 0.5
    assert torch.equal(DiffusersAutoencoder(raw).encode(video).sample(), noisy.mode())


def test_the_kl_divergence_is_a_scalar():
    raw, video = tiny_model("wan"), tiny_clip("wan", batch=2)
    assert raw.encode(video).latent_dist.kl().shape == (2, 2)
    assert DiffusersAutoencoder(raw)(video).aux["kl_loss"].mean.shape[0] == len(video)


def test_cogvideox_refuses_5_frames_for_which_it_returns_8():
    raw = tiny_model("cogvideox")
    assert raw(torch.zeros(1, 3, 5, 16, 16)).sample.shape[2] == 8
    with pytest.raises(ValueError, match=r"must be 1, 8 or 9 for this model, but got 5\. Use 8,"):
        DiffusersAutoencoder(raw).encode(torch.zeros(1, 3, 5, 16, 16))


@pytest.mark.parametrize("hides_signature", [False, True])
def test_temporal_decoder_is_called_with_frames_and_their_number(hides_signature, monkeypatch):
    raw, video = tiny_model("temporal_decoder"), tiny_clip("temporal_decoder", batch=2)
    if hides_signature:  # as diffusers 0.36 does
        decode = type(raw).decode
        monkeypatch.setattr(type(raw), "decode", lambda self, *args, **options: decode(self, *args, **options))
    with pytest.raises((RuntimeError, ValueError)):
        raw.encode(video)
    output = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    frames = video.transpose(1, 2).flatten(0, 1)
    expected = raw.decode(raw.encode(frames).latent_dist.mode(), num_frames=3).sample
    torch.testing.assert_close(output.transpose(1, 2).flatten(0, 1), expected)


@pytest.mark.parametrize(("name", "num_frames"), [("wan", 1), ("wan", 9), ("wan_residual", 9), ("qwen_image", 9)])
def test_whole_clips_have_the_values_and_gradients_of_the_classes_own_chunks(name, num_frames, monkeypatch):
    raw = tiny_model(name).double()
    for weight in raw.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    own, model = copy.deepcopy(raw), DiffusersAutoencoder(raw)
    video = torch.rand(2, 3, num_frames, 16, 16, dtype=torch.double) * 2 - 1
    cotangent = torch.randn_like(video)
    posterior = own.encode(video).latent_dist
    with monkeypatch.context() as without_clamp:
        without_clamp.setattr(torch, "clamp", lambda x, **_: x)
        expected = own.decode(posterior.mean).sample
    ((expected * cotangent).sum() + posterior.logvar.sum()).backward()
    model.check_clip(num_frames, 16, 16)
    calls = []
    raw.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    raw.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    encoded = model.encode(video)
    found = model.decode(encoded.mean)
    ((found * cotangent).sum() + encoded.logvar.sum()).backward()
    assert calls == ["encoder", "decoder"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(model.decode(posterior.mean), expected)
    for weight, other in zip(raw.parameters(), own.parameters(), strict=True):
        gradient, own_gradient = (torch.zeros_like(w) if w.grad is None else w.grad for w in (weight, other))
        torch.testing.assert_close(gradient, own_gradient, rtol=1e-10, atol=1e-10 * own_gradient.abs().max().item())


@pytest.mark.parametrize("name", ["wan", "qwen_image"])
def test_a_module_that_is_wrapped_again_is_the_same(name):
    raw, video = tiny_model(name), tiny_clip(name)
    once = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    assert torch.equal(DiffusersAutoencoder(raw)(video, sample_posterior=False).video, once)


def test_without_gradients_wan_works_in_its_own_chunks_which_need_less_memory():
    raw, video = tiny_model("wan"), tiny_clip("wan")
    model, calls = DiffusersAutoencoder(raw), []
    model.check_clip(*video.shape[2:])
    raw.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    with torch.no_grad():
        model.encode(video)
    assert len(calls) == 1 + (video.shape[2] - 1) // 4 > 1


def test_rae_decodes_a_turned_latent():
    latent = torch.randn(2, 4, 1, 2, 2).transpose(-1, -2)
    model = DiffusersAutoencoder(tiny_model("rae"))
    assert torch.equal(model.decode(latent), model.decode(latent.contiguous()))


@pytest.mark.parametrize("in_channels", [3, 4])
def test_qwen_image21_may_have_an_alpha_channel(in_channels):
    raw, video = qwen_image21(in_channels), tiny_clip("qwen_image21")
    output = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    whole = torch.cat([video, torch.ones_like(video[:, :1])], dim=1)[:, :in_channels]
    frames = [raw(whole[:, :, index, None]).sample[:, :3] for index in range(whole.shape[2])]
    torch.testing.assert_close(output.clamp(-1, 1), torch.cat(frames, dim=2))


def test_an_image_autoencoder_processes_each_frame_of_a_clip():
    torch.manual_seed(0)
    raw = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=2,
    )
    video = torch.rand(2, 3, 3, 8, 8)
    output = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    torch.testing.assert_close(output[:, :, 1], raw(video[:, :, 1]).sample)
