"""Where single diffusers classes differ from the rest. Each test first shows the class's own behaviour."""

import copy

import pytest
import torch

from telecine.base.randomness import clip_generators
from telecine.models.diffusers import DiffusersAutoencoder
from telecine.models.diffusers.adapter import LARGEST_LEVEL
from telecine.models.flow import LatentNoise
from telecine.ops.pass_options import ClipPosition, clip_position

from .tiny_models import tiny_clip, tiny_model

pytestmark = pytest.mark.usefixtures("probe_each_configuration_once")
slow = pytest.mark.slow


@slow
def test_hunyuan_video_is_not_tiled_in_time_above_16_frames():
    raw = tiny_model("hunyuan_video")
    video = torch.rand(1, 3, 33, 16, 16) * 2 - 1
    tiled = raw(video).sample
    whole = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    assert (whole - tiled).abs().max() > 1e-3
    mean, _ = raw.quant_conv(raw.encoder(video)).chunk(2, dim=1)
    torch.testing.assert_close(whole, raw.decoder(raw.post_quant_conv(mean)))


@slow
def test_minimax_h3_does_not_tile_large_frames():
    raw = tiny_model("minimax_h3")
    video = torch.rand(1, 3, 22, 64, 64) * 2 - 1
    raw.tile_sample_min_height = raw.tile_sample_min_width = 32
    raw.tile_sample_min_overlap_height = raw.tile_sample_min_overlap_width = 16
    tiled = raw.encode(video).latent_dist.mode()
    DiffusersAutoencoder(raw)
    assert (raw.encode(video).latent_dist.mode() - tiled).abs().max() > 1e-3


@slow
def test_vidtok_without_causality_supports_multiples_of_16_frames():
    model = DiffusersAutoencoder(tiny_model("vidtok", is_causal=False))
    assert [
        length for length in (1, 5, 8, 15, 16, 17, 24, 32) if model.sizes.reproduces_length(length)
    ] == [16, 32]
    encoder = model.linear_autoencoder(16, 16, 16).encoder
    assert (encoder.time, encoder.first) == (4, None)


def test_magvit_works_after_an_error():
    model = DiffusersAutoencoder(tiny_model("magvit"))
    video = tiny_clip("magvit")
    expected = model.module(video).sample
    with pytest.raises((RuntimeError, ValueError)):
        model.module.encode(torch.zeros(1, 3, 4, 16, 16))  # the second chunk is too short
    with pytest.raises((RuntimeError, ValueError)):
        model.module(torch.zeros(1, 3, 5, 32, 32))
    assert model(torch.zeros(1, 3, 5, 32, 32)).video.shape == (1, 3, 5, 32, 32)
    torch.testing.assert_close(model(video, sample_posterior=False).video, expected)


def levels_told(model, latent, *, seed=None):
    """Return the latents and the levels that a model passes to its decoder in an update, or else in decoding."""
    told = []
    hook = model.module.decoder.register_forward_pre_hook(lambda _, inputs: told.append(inputs))
    if seed is None:
        model.decode(latent)
    else:
        model.training_output(
            latent, None, clip_generators(seed, range(len(latent)), latent.device)
        ).video.sum().backward()
    hook.remove()
    return told[0]


def test_ltx_with_timestep_trains_at_random_levels_up_to_a_fifth():
    model = DiffusersAutoencoder(tiny_model("ltx_video_with_timestep"))
    latent = torch.randn(64, 8, 1, 1, 1)
    noisy, levels = levels_told(model, latent, seed=0)
    assert 0 <= levels.min() < 0.05 < 0.15 < levels.max() <= LARGEST_LEVEL == 0.2
    assert levels.mean() == pytest.approx(0.1, abs=0.02)
    level = levels.view(-1, 1, 1, 1, 1)
    assert ((noisy - (1 - level) * latent) / level).std() == pytest.approx(1.0, abs=0.1)
    again = levels_told(model, latent[3:5], seed=0)[1]
    assert torch.equal(again, levels[:2]), "a function of the seed and the clip's number"
    assert model.module.decoder.time_embedder.timestep_embedder.linear_1.weight.grad.any()


def test_an_update_of_ltx_with_timestep_denoises_and_validation_does_not():
    model = DiffusersAutoencoder(tiny_model("ltx_video_with_timestep"))
    video = tiny_clip("ltx_video_with_timestep")
    model.check_clip(*video.shape[2:])
    levels = []
    model.module.decoder.register_forward_pre_hook(
        lambda _, inputs: levels.append(inputs[1].item())
    )
    output = model(video, generator=torch.Generator().manual_seed(0))
    model(video, sample_posterior=False)
    assert levels[0] > 0 == levels[1]
    assert set(output.aux) == {"kl_loss"}
    assert output.latent is not None


def test_ltx_decodes_at_a_level_as_its_pipeline():
    raw = tiny_model("ltx_video", timestep_conditioning=True, decoder_inject_noise=(True,) * 5)
    for weight in raw.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model = DiffusersAutoencoder(raw).eval()
    model.set_decoding(level=0.05, seed=3)
    latent = torch.randn(2, 8, 2, 2, 2)
    with clip_position(first_frame=9):
        noisy, levels = levels_told(model, latent)
        decoded = model.decode(latent)
        assert torch.equal(model.decode(latent), decoded), "the noise that it injects is the same"
    assert levels.tolist() == pytest.approx([0.05, 0.05])
    noise = LatentNoise(seed=3).noise(latent.shape, ClipPosition(first_frame=2), latent.device)
    torch.testing.assert_close(noisy, 0.95 * latent + 0.05 * noise)
    torch.manual_seed(3)
    assert torch.equal(decoded, raw.decode(noisy, levels).sample)


def test_temporal_decoder_is_called_with_frames_and_their_number_if_its_signature_is_hidden(
    monkeypatch,
):
    """As it is in diffusers 0.36."""
    raw = tiny_model("temporal_decoder")
    video = tiny_clip("temporal_decoder", batch=2)
    frames = video.transpose(1, 2).flatten(0, 1)
    expected = raw.decode(raw.encode(frames).latent_dist.mode(), num_frames=3).sample
    decode = type(raw).decode
    monkeypatch.setattr(
        type(raw), "decode", lambda self, *args, **options: decode(self, *args, **options)
    )
    output = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    torch.testing.assert_close(output.transpose(1, 2).flatten(0, 1), expected)


@pytest.mark.parametrize(
    ("name", "num_frames"), [("wan", 1), ("wan", 9), ("wan_residual", 9), ("qwen_image", 9)]
)
def test_whole_clips_have_the_values_and_gradients_of_the_classes_own_chunks(
    name, num_frames, monkeypatch
):
    raw = tiny_model(name).double()
    norm = raw.decoder.norm_out
    norm.bias = torch.nn.Parameter(torch.zeros_like(norm.gamma))  # as the classes may have
    for weight in raw.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    chunked = copy.deepcopy(raw)
    model = DiffusersAutoencoder(raw)
    video = torch.rand(2, 3, num_frames, 16, 16, dtype=torch.double) * 2 - 1
    cotangent = torch.randn_like(video)
    posterior = chunked.encode(video).latent_dist
    with monkeypatch.context() as without_clamp:
        without_clamp.setattr(torch, "clamp", lambda x, **_: x)
        expected = chunked.decode(posterior.mean).sample
    ((expected * cotangent).sum() + posterior.logvar.sum()).backward()
    model.check_clip(num_frames, 16, 16)
    calls = []
    for part in ("encoder", "decoder"):
        getattr(raw, part).register_forward_hook(lambda *_, part=part: calls.append(part))
    encoded = model.encode(video)
    decoded = model.decode(encoded.mean)
    ((decoded * cotangent).sum() + encoded.logvar.sum()).backward()
    assert calls == ["encoder", "decoder"]
    torch.testing.assert_close(decoded, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(model.decode(posterior.mean), expected)
        model.encode(video)
    assert calls.count("encoder") == 1 + 1 + (num_frames - 1) // 4, (
        "in chunks, which need less memory"
    )
    for weight, reference in zip(raw.parameters(), chunked.parameters(), strict=True):
        if reference.grad is None:
            assert weight.grad is None or not weight.grad.any()
        else:
            atol = 1e-10 * reference.grad.abs().max().item()
            torch.testing.assert_close(weight.grad, reference.grad, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("name", ["wan", "qwen_image"])
def test_a_module_that_is_wrapped_again_is_the_same(name):
    raw = tiny_model(name)
    once = DiffusersAutoencoder(raw)(tiny_clip(name), sample_posterior=False).video
    assert torch.equal(
        DiffusersAutoencoder(raw)(tiny_clip(name), sample_posterior=False).video, once
    )


def test_rae_decodes_a_turned_latent():
    latent = torch.randn(2, 4, 1, 2, 2).transpose(-1, -2)
    model = DiffusersAutoencoder(tiny_model("rae"))
    assert torch.equal(model.decode(latent), model.decode(latent.contiguous()))


def test_qwen_image21_may_have_three_channels():
    raw = tiny_model("qwen_image21", in_channels=3, out_channels=3)
    video = tiny_clip("qwen_image21")
    output = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    frames = [raw(frame[:, :, None]).sample for frame in video.unbind(2)]
    torch.testing.assert_close(output.clamp(-1, 1), torch.cat(frames, dim=2))
