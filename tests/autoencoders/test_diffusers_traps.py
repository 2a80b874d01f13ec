"""What goes wrong with a diffusers model as it comes, and does not with the adapter; each trap is shown first."""

from __future__ import annotations

import copy
import json

import diffusers
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKLOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from torch import nn

from telecine.autoencoders.diffusers import DiffusersAutoencoder, PointPosterior
from telecine.autoencoders.diffusers.passage import encode

from .tiny_models import CLIPS, ltx_video, qwen_image21, tiny_clip, tiny_model


def adapter(name):
    return DiffusersAutoencoder(tiny_model(name))


@pytest.mark.parametrize("name", ["wan", "wan_residual", "qwen_image", "qwen_image21"])
def test_decoders_that_clamp(name):
    raw, video = tiny_model(name), tiny_clip(name)
    model = DiffusersAutoencoder(raw)
    with torch.no_grad():
        model.last_layer.mul_(1000)
    latent = model.encode(video).mode()
    assert raw.decode(latent).sample.abs().max() == 1
    assert model.decode(latent).abs().max() > 1


def test_hunyuan_video_tiles_in_time_above_16_frames():
    raw, video = tiny_model("hunyuan_video"), torch.rand(1, 3, 33, 16, 16) * 2 - 1
    tiled = raw(video).sample
    model = DiffusersAutoencoder(raw)
    found = model(video, sample_posterior=False).video
    assert (found - tiled).abs().max() > 1e-3
    mean, _ = raw.quant_conv(raw.encoder(video)).chunk(2, dim=1)
    torch.testing.assert_close(found, raw.decoder(raw.post_quant_conv(mean)))


def test_hunyuan_video15_takes_one_clip_at_a_time():
    raw, video = tiny_model("hunyuan_video15"), tiny_clip("hunyuan_video15", batch=2)
    with pytest.raises(RuntimeError):
        raw(video)
    both = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    assert both.shape == video.shape


def test_minimax_h3_tiles_large_pictures():
    raw, video = tiny_model("minimax_h3"), torch.rand(1, 3, 22, 64, 64) * 2 - 1
    raw.tile_sample_min_height = raw.tile_sample_min_width = 32
    raw.tile_sample_min_overlap_height = raw.tile_sample_min_overlap_width = 16
    assert raw.use_tiling
    tiled = raw.encode(video).latent_dist.mode()
    DiffusersAutoencoder(raw)
    assert not raw.use_tiling
    assert (raw.encode(video).latent_dist.mode() - tiled).abs().max() > 1e-3


def test_minimax_h3_works_on_imagenets_colours():
    raw = tiny_model("minimax_h3")
    model = DiffusersAutoencoder(raw)
    # The mean colour of ImageNet is 0 to the model.
    video = (torch.tensor([0.485, 0.456, 0.406]) * 2 - 1).view(1, 3, 1, 1, 1).expand(1, 3, *CLIPS["minimax_h3"])
    torch.testing.assert_close(model.encode(video).mode(), raw.encode(torch.zeros_like(video)).latent_dist.mode())
    with torch.no_grad():
        raw.decoder.proj_out.weight.zero_()
        raw.decoder.proj_out.bias.zero_()
    torch.testing.assert_close(model(video).video, video)


def test_allegro_refuses_to_work_without_tiles():
    raw, video = tiny_model("allegro"), tiny_clip("allegro")
    with pytest.raises(NotImplementedError):
        raw.encode(video)
    assert DiffusersAutoencoder(raw)(video).video.shape == video.shape


def test_vidtok_keeps_tensors_of_the_graph():
    raw, video = tiny_model("vidtok"), tiny_clip("vidtok")
    raw(video)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(raw)
    copy.deepcopy(DiffusersAutoencoder(raw))


def test_vidtok_can_be_copied_after_a_backward_that_computes_again():
    model, video = adapter("vidtok"), tiny_clip("vidtok")
    model.enable_gradient_checkpointing()
    model(video).video.mean().backward()
    copy.deepcopy(model)


def test_vidtok_pads_before_the_first_frame_outside_of_encode():
    raw, video = tiny_model("vidtok"), tiny_clip("vidtok")
    assert raw.decode(raw.encode(video).latent_dist.mode()).shape != video.shape
    assert DiffusersAutoencoder(raw)(video).video.shape == video.shape


def test_vidtok_that_is_not_causal_takes_multiples_of_16():
    raw = diffusers.AutoencoderVidTok(ch=8, ch_mult=[1, 1, 1, 1], num_res_blocks=1, is_causal=False)
    model = DiffusersAutoencoder(raw)
    assert [length for length in range(1, 50) if model.sizes.lasts(length)] == [16, 32, 48]
    with pytest.raises(ValueError, match="Give it 16 frames, not 17: this model needs a multiple of 16"):
        model.check_clip(17, 16, 16)


def test_magvit_stays_broken_after_an_error():
    raw, video = tiny_model("magvit"), tiny_clip("magvit")
    expected = raw(video).sample
    with pytest.raises((RuntimeError, ValueError)):
        raw.encode(torch.zeros(1, 3, 4, 16, 16))  # the second chunk is too short
    with pytest.raises((RuntimeError, ValueError)):
        raw(torch.zeros(1, 3, 5, 32, 32))
    model = DiffusersAutoencoder(tiny_model("magvit"))
    with pytest.raises((RuntimeError, ValueError)):
        encode(model.module, model.family, torch.zeros(1, 3, 4, 16, 16))
    assert model(torch.zeros(1, 3, 5, 32, 32)).video.shape == (1, 3, 5, 32, 32)
    torch.testing.assert_close(model(video, sample_posterior=False).video, expected)


def test_ltx_with_timestep_wants_to_know_the_noise():
    raw, video = tiny_model("ltx_video_with_timestep"), tiny_clip("ltx_video_with_timestep", batch=2)
    with pytest.raises((TypeError, AttributeError)):
        raw(video)
    model = DiffusersAutoencoder(raw)
    expected = raw.decode(model.encode(video).mode(), temb=torch.zeros(2)).sample
    torch.testing.assert_close(model(video, sample_posterior=False).video, expected)


def test_ltx_that_injects_noise_takes_it_from_the_same_generator():
    model = DiffusersAutoencoder(ltx_video(decoder_inject_noise=(True,) * 5))
    video = tiny_clip("ltx_video")
    torch.manual_seed(1)
    first = model(video).video
    torch.manual_seed(1)
    torch.testing.assert_close(model(video).video, first, rtol=0, atol=0)


def test_kvae_has_a_variance_of_1_that_is_not_its_own():
    raw, video = tiny_model("kvae_video"), tiny_clip("kvae_video")
    noisy = raw.encode(video).latent_dist
    assert (noisy.sample() - noisy.mode()).std() > 0.5
    assert torch.equal(DiffusersAutoencoder(raw).encode(video).sample(), noisy.mode())


def test_the_divergence_of_diffusers_has_the_wrong_shape():
    raw, video = tiny_model("wan"), tiny_clip("wan", batch=2)
    assert raw.encode(video).latent_dist.kl().shape == (2, 2)
    assert DiffusersAutoencoder(raw)(video).aux["kl_loss"].shape == ()


def test_cogvideox_returns_8_frames_for_5():
    raw = tiny_model("cogvideox")
    assert raw(torch.zeros(1, 3, 5, 16, 16)).sample.shape[2] == 8
    with pytest.raises(ValueError, match="Give it 8 frames, not 5: this model needs 1, 8 or 9"):
        DiffusersAutoencoder(raw).encode(torch.zeros(1, 3, 5, 16, 16))


def test_temporal_decoder_takes_frames_and_their_number():
    raw, video = tiny_model("temporal_decoder"), tiny_clip("temporal_decoder", batch=2)
    with pytest.raises((RuntimeError, ValueError)):
        raw.encode(video)
    output = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    frames = video.transpose(1, 2).flatten(0, 1)
    expected = raw.decode(raw.encode(frames).latent_dist.mode(), num_frames=3).sample
    torch.testing.assert_close(output.transpose(1, 2).flatten(0, 1), expected)


@pytest.mark.parametrize("in_channels", [3, 4])
def test_qwen_image21_may_have_an_alpha_channel(in_channels):
    raw, video = qwen_image21(in_channels), tiny_clip("qwen_image21")
    output = DiffusersAutoencoder(raw)(video, sample_posterior=False).video
    whole = torch.cat([video, torch.ones_like(video[:, :1])], dim=1)[:, :in_channels]
    torch.testing.assert_close(output.clamp(-1, 1), raw(whole).sample[:, :3])


def test_from_pretrained_of_diffusers_returns_eval_mode(tmp_path):
    tiny_model("cogvideox").to(torch.bfloat16).save_pretrained(tmp_path)
    assert not diffusers.AutoModel.from_pretrained(str(tmp_path)).training
    model = DiffusersAutoencoder.from_pretrained(tmp_path)
    assert all(module.training for module in model.modules())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    half = DiffusersAutoencoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    video = tiny_clip("cogvideox")
    assert half(video).video.dtype == torch.bfloat16
    assert half(video).aux["kl_loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        (
            "wan",
            (16, 16, 16),
            "`num_frames` must be 4k\\+1, but got 16. Give it 17 frames, not 16: this model needs 4k\\+1",
        ),
        ("wan", (0, 16, 16), "Give it 1 frames, not 0"),
        ("wan", (5, 20, 16), "`height` must be a multiple of 8, but got 20. Give it 24 rows, not 20"),
        ("wan", (5, 16, 3), "`width` must be a multiple of 8, but got 3. Give it 8 columns, not 3"),
        ("ltx_video", (16, 32, 32), "17 frames, not 16: this model needs 8k\\+1"),
        ("allegro", (5, 16, 16), "4 frames, not 5: this model needs a multiple of 4"),
        ("minimax_h3", (17, 32, 32), "22 frames, not 17: this model needs 17k\\+5"),
        ("qwen_image21", (17, 32, 32), "1 frames, not 17: this model needs 1"),
        ("mochi", (7, 8, 16), "16 rows, not 8"),
    ],
)
def test_a_refused_size_names_the_nearest(name, size, says):
    with pytest.raises(ValueError, match=says):
        adapter(name).check_clip(*size)


@pytest.mark.parametrize(
    ("name", "size", "covering"),
    [
        ("cogvideox", (5, 9, 16), (8, 16, 16)),
        ("wan", (16, 17, 30), (17, 24, 32)),
        ("mochi", (2, 1, 24), (7, 16, 24)),
        ("minimax_h3", (6, 32, 33), (22, 32, 48)),
        ("hunyuan_image_refiner", (6, 16, 16), (6, 16, 16)),
        ("qwen_image21", (1, 60, 90), (1, 64, 96)),
    ],
)
def test_the_smallest_size_that_covers(name, size, covering):
    model = adapter(name)
    assert model.covering_clip(*size) == covering
    model.check_clip(*covering)


def test_a_model_for_images_covers_no_clip():
    with pytest.raises(ValueError, match="1 frames, not 2"):
        adapter("qwen_image21").covering_clip(2, 32, 32)


def test_bad_videos_are_refused():
    model = adapter("wan")
    for video, says in (
        (torch.zeros(3, 5, 16, 16), "shape"),
        (torch.zeros(1, 1, 5, 16, 16), "Repeat a grey channel"),
        (torch.zeros(1, 3, 4, 16, 16), "5 frames, not 4"),
    ):
        with pytest.raises(ValueError, match=says):
            model(video)
    with pytest.raises(ValueError, match="latent"):
        model.decode(torch.zeros(4, 1, 2, 2))


class Plain(ModelMixin, ConfigMixin):
    """A class that the adapter has never heard of."""

    @register_to_config
    def __init__(self, channels: int = 4):
        super().__init__()
        self.encoder = nn.Conv3d(3, 2 * channels, (1, 2, 2), stride=(1, 2, 2))
        self.decoder = nn.ConvTranspose3d(channels, 3, (1, 2, 2), stride=(1, 2, 2))

    def encode(self, x):
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(self.encoder(x)))

    def decode(self, z):
        return DecoderOutput(sample=self.decoder(z))


class Quantized(Plain):
    """Its encoder returns a tuple with a loss, its decoder a loss as well, and it reads values."""

    def encode(self, x):
        latent = self.encoder(x)[:, : self.config.channels]
        assert latent.detach().mean().item() < 10
        return latent.round() + latent - latent.detach(), latent.square().mean(), {"codes": 1}

    def decode(self, z):
        return DecoderOutput(sample=self.decoder(z), commit_loss=z.square().mean()[None])


class Bare(Plain):
    """Its encoder returns a tensor, its decoder a tuple."""

    def encode(self, x):
        return self.encoder(x)[:, : self.config.channels]

    def decode(self, z):
        return (self.decoder(z),)


class Normed(Plain):
    """It counts what passes."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(self.encoder, nn.BatchNorm3d(8))


class Nonsense(Plain):
    def encode(self, x):
        return {"z": self.encoder(x)}


class Mute(Plain):
    def decode(self, z):
        return {"video": self.decoder(z)}


class Half(Plain):
    decode = None


class Sound(Plain):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv1d(2, 2, 3)


@pytest.mark.parametrize("cls", [Plain, Quantized, Bare])
def test_an_unknown_class_just_works(cls, tmp_path):
    model = DiffusersAutoencoder(cls())
    video = torch.rand(2, 3, 3, 8, 6)
    output = model(video)
    assert output.video.shape == video.shape
    assert list(output.aux) == {Plain: ["kl_loss"], Quantized: ["quantizer_loss", "commit_loss"], Bare: []}[cls]
    (output.video.mean() + sum(output.aux.values())).backward()
    assert model.module.encoder.weight.grad.any()
    assert model.last_layer is model.module.decoder.weight
    assert (model.sizes.smallest, model.sizes.multiple) == ((1, 2, 2), 2)
    assert not model.sizes.on_meta
    model.save_pretrained(tmp_path)
    loaded = DiffusersAutoencoder.from_pretrained(tmp_path)
    assert type(loaded.module) is cls
    assert torch.equal(loaded(video, False).video, model(video, False).video)


def test_looking_leaves_running_averages_alone():
    model = DiffusersAutoencoder(Normed())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.check_clip(2, 8, 8)
    assert len(before) == 3
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_module_without_gradient_checkpointing_says_so():
    with pytest.raises(ValueError, match="one without it"):
        DiffusersAutoencoder(Module()).enable_gradient_checkpointing()


class Module(nn.Module):
    """Not even a model of diffusers."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv3d(3, 2, 1), nn.Conv3d(2, 3, 1)

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)


def test_an_image_autoencoder_takes_a_clip_frame_by_frame():
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


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (nn.Identity, TypeError, "Identity, which lacks `encode`"),
        (Half, TypeError, "Half, which lacks `decode`"),
    ],
)
def test_a_model_without_the_methods_is_refused(build, error, says):
    with pytest.raises(error, match=says):
        DiffusersAutoencoder(build())


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (Sound, "Sound, which does so for no size"),
        (Nonsense, "does so for no size.*the output of `encode`` must be"),
        (Mute, "the output of `decode`` must be"),
    ],
)
def test_a_model_that_is_none_of_video_says_what_is_missing(build, says):
    with pytest.raises(ValueError, match=says):
        DiffusersAutoencoder(build()).check_clip(1, 8, 8)


def test_a_point_has_losses_of_its_own():
    assert PointPosterior(torch.zeros(1)).losses == {}


def test_from_config_takes_a_file_a_folder_or_values(tmp_path):
    values = {"_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for config in (values, tmp_path, tmp_path / "config.json", str(tmp_path)):
        model = DiffusersAutoencoder.from_config(config)
        assert isinstance(model.module, diffusers.AutoencoderKLWan)
        assert model.module.config.base_dim == 4
        assert model.training


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bse_dim": 4}, "`bse_dim` must be one of .*Did you mean `base_dim`"),
        ({"_class_name": "AutoencoderKLWn"}, "Did you mean `AutoencoderKLWan`"),
        ({"_class_name": "zzz"}, "update diffusers"),
        ({"_class_name": None}, "a configuration with `_class_name`"),
    ],
)
def test_a_bad_config_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        DiffusersAutoencoder.from_config({"_class_name": "AutoencoderKLWan", "base_dim": 4, **changes})


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        DiffusersAutoencoder.from_config(tmp_path / "none.json")


def test_load_weights_copies_in_place(tmp_path):
    source, target = DiffusersAutoencoder(tiny_model("wan", 1)), adapter("wan")
    source.save_pretrained(tmp_path)
    weight = target.last_layer
    target.load_weights(tmp_path)
    assert target.last_layer is weight
    video = tiny_clip("wan")
    assert torch.equal(target(video, False).video, source(video, False).video)


def test_load_weights_of_another_configuration_names_what_differs(tmp_path):
    adapter("qwen_image").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the model's weights, but got .* and \d+ more"):
        adapter("cogvideox").load_weights(tmp_path)


def test_missing_weights_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    adapter("wan").save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_out.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights too few, e.g. decoder\.conv_out\.weight"):
        DiffusersAutoencoder.from_pretrained(tmp_path)
