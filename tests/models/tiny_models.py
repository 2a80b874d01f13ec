"""The autoencoders of diffusers with random weights, each as small as its class allows."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache

import diffusers
import pytest
import torch
from diffusers import ModelMixin
from torch import nn

from telecine.models.diffusers import DiffusersAutoencoder, loading


def newer(name: str) -> Callable[..., ModelMixin]:
    """Return a class of diffusers, or skip the test: 0.36 does not have it."""
    return getattr(diffusers, name, None) or pytest.skip(f"diffusers {diffusers.__version__} has no {name}")


def cogvideox() -> ModelMixin:
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )


def wan() -> ModelMixin:
    return diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def wan_residual() -> ModelMixin:
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def qwen_image() -> ModelMixin:
    return diffusers.AutoencoderKLQwenImage(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def qwen_image21(in_channels: int = 4) -> ModelMixin:
    return newer("AutoencoderKLQwenImage21")(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        in_channels=in_channels,
        out_channels=in_channels,
    )


def ltx_video(**changes: object) -> ModelMixin:
    settings = {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    }
    return diffusers.AutoencoderKLLTXVideo(**{**settings, **changes})


def ltx_video_with_timestep() -> ModelMixin:
    return ltx_video(timestep_conditioning=True)


def ltx2_video() -> ModelMixin:
    return newer("AutoencoderKLLTX2Video")(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
    )


def ltx2_diffusion_decoder(**changes: object) -> ModelMixin:
    """Return a decoder for the latents of `ltx2_video`, for 9 frames of 64 x 64 pixels and more."""
    settings = {
        "latent_channels": 8,
        "decoder_head_dim": 8,
        "decoder_stage_channels": (16, 8, 8, 8, 8),
        "decoder_stage_depths": (1, 1, 1, 1, 1),
        "decoder_stage_kernels": ((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 2, 2)),
        "decoder_stage5_kernel": (5, 3, 5),
        "decoder_upsample_channel_reductions": (2, 1, 1, 1),
        "decoder_t_emb_dim": 16,
    }
    return newer("LTX2VideoDiffusionDecoderModel")(**{**settings, **changes})


def hunyuan_video() -> ModelMixin:
    return diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )


def hunyuan_video15() -> ModelMixin:
    return diffusers.AutoencoderKLHunyuanVideo15(
        block_out_channels=(16, 16, 16, 16, 16), latent_channels=4, layers_per_block=1
    )


def hunyuan_image_refiner() -> ModelMixin:
    return diffusers.AutoencoderKLHunyuanImageRefiner(
        block_out_channels=(16, 16, 16, 16, 16), latent_channels=4, layers_per_block=1
    )


def cosmos() -> ModelMixin:
    return diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
    )


def mochi() -> ModelMixin:
    return diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        latent_channels=4,
        layers_per_block=(1, 1, 1, 1, 1),
    )


def allegro() -> ModelMixin:
    return diffusers.AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )


def magvit() -> ModelMixin:
    return diffusers.AutoencoderKLMagvit(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )


def temporal_decoder() -> ModelMixin:
    return diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32, 32, 32, 32), layers_per_block=2
    )


def kvae_video() -> ModelMixin:
    return newer("AutoencoderKLKVAEVideo")(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)


def minimax_h3() -> ModelMixin:
    return newer("AutoencoderKLMiniMaxH3")(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=16,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )


def kandinsky6_sr() -> ModelMixin:
    return newer("Kandinsky6SRVAE")(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )


def vidtok() -> ModelMixin:
    return newer("AutoencoderVidTok")(ch=8, ch_mult=[1, 1, 1, 1], z_channels=4, num_res_blocks=1)


def vidtok_fsq() -> ModelMixin:
    return newer("AutoencoderVidTok")(
        ch=8,
        ch_mult=[1, 1, 1, 1],
        z_channels=4,
        num_res_blocks=1,
        double_z=False,
        regularizer="fsq",
        codebook_size=8**4,
    )


KL_IMAGE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (4, 4),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}


def kl_image() -> ModelMixin:
    """Return the class of Stable Diffusion, as Flux has it."""
    return diffusers.AutoencoderKL(**KL_IMAGE, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)


def flux2() -> ModelMixin:
    return diffusers.AutoencoderKLFlux2(**KL_IMAGE)


def asymmetric() -> ModelMixin:
    blocks = {key: value for key, value in KL_IMAGE.items() if key not in ("block_out_channels", "layers_per_block")}
    return diffusers.AsymmetricAutoencoderKL(**blocks, down_block_out_channels=(4, 4), up_block_out_channels=(4, 4))


def hunyuan_image() -> ModelMixin:
    return diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
    )


def kvae_image() -> ModelMixin:
    return newer("AutoencoderKLKVAE")(channels=32, ch_mult=(1, 1), num_enc_blocks=1, num_dec_blocks=1, z_channels=4)


def dc_ae() -> ModelMixin:
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        **{f"{side}_block_types": ["ResBlock", "EfficientViTBlock"] for side in ("encoder", "decoder")},
        **{f"{side}_block_out_channels": (4, 8) for side in ("encoder", "decoder")},
        **{f"{side}_layers_per_block": (1, 1) for side in ("encoder", "decoder")},
        **{f"{side}_qkv_multiscales": ((), (5,)) for side in ("encoder", "decoder")},
    )


def tiny_image() -> ModelMixin:
    sizes = {f"{side}_block_out_channels": (4, 4) for side in ("encoder", "decoder")}
    return diffusers.AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))


def vq_image() -> ModelMixin:
    return diffusers.VQModel(**KL_IMAGE, num_vq_embeddings=16)


class Encoder(nn.Module):
    """Stands in for a network of transformers, which tests need not have: patches of 14 x 14 pixels become tokens."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, hidden_size, 14, stride=14)


def tokens_of(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    return encoder.embed(images).flatten(2).transpose(1, 2)


def rae() -> ModelMixin:
    """Return a decoder with a frozen encoder, for images of 32 x 32 pixels alone."""
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_rae")
    module._build_encoder = lambda hidden_size, **_: Encoder(hidden_size).requires_grad_(False)
    module._ENCODER_FORWARD_FNS["dinov2"] = tokens_of
    loading.is_transformers_available = lambda: True
    return module.AutoencoderRAE(
        encoder_hidden_size=4,
        encoder_num_hidden_layers=1,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
        encoder_input_size=28,
        latents_mean=[0.5],
        latents_std=[2.0],
    )


TINY_MODELS: dict[str, Callable[[], ModelMixin]] = {
    build.__name__: build
    for build in (
        cogvideox,
        wan,
        wan_residual,
        qwen_image,
        qwen_image21,
        ltx_video,
        ltx_video_with_timestep,
        ltx2_video,
        hunyuan_video,
        hunyuan_video15,
        hunyuan_image_refiner,
        cosmos,
        mochi,
        allegro,
        magvit,
        temporal_decoder,
        kvae_video,
        minimax_h3,
        kandinsky6_sr,
        vidtok,
        vidtok_fsq,
        kl_image,
        flux2,
        asymmetric,
        hunyuan_image,
        kvae_image,
        dc_ae,
        tiny_image,
        vq_image,
        rae,
    )
}
# Those that encode each frame by itself, so that images are clips of one frame.
IMAGE_MODELS = (
    *("asymmetric", "dc_ae", "flux2", "hunyuan_image", "kl_image", "kvae_image", "qwen_image21"),
    *("rae", "tiny_image", "vq_image"),
)

# The smallest clip of each, (frames, height, width), that uses all weights.
CLIPS: dict[str, tuple[int, int, int]] = {
    "cogvideox": (9, 16, 16),
    "wan": (5, 16, 16),
    "wan_residual": (5, 32, 32),
    "qwen_image": (5, 16, 16),
    "qwen_image21": (2, 32, 32),
    "ltx_video": (9, 32, 32),
    "ltx_video_with_timestep": (9, 32, 32),
    "ltx2_video": (9, 64, 64),
    "hunyuan_video": (5, 16, 16),
    "hunyuan_video15": (5, 32, 32),
    "hunyuan_image_refiner": (5, 32, 32),
    "cosmos": (9, 32, 32),
    "mochi": (7, 16, 16),
    "allegro": (4, 16, 16),
    "magvit": (5, 16, 16),
    "temporal_decoder": (3, 16, 16),
    "kvae_video": (5, 16, 16),
    "minimax_h3": (22, 32, 32),
    "kandinsky6_sr": (5, 32, 32),
    "vidtok": (5, 16, 16),
    "vidtok_fsq": (5, 16, 16),
    **dict.fromkeys(("kl_image", "flux2", "asymmetric", "tiny_image", "vq_image"), (2, 8, 8)),
    **dict.fromkeys(("hunyuan_image", "kvae_image", "dc_ae"), (2, 8, 8)),
    "rae": (2, 32, 32),
}


def tiny_model(name: str, seed: int = 0) -> ModelMixin:
    """Return the model of this name with the weights of a seed."""
    torch.manual_seed(seed)
    return TINY_MODELS[name]()


def tiny_clip(name: str, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Return random clips of the model's size, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(batch, 3, *CLIPS[name], generator=generator) - 1


# The model for `pytest -m "not slow"`: it clamps, and caches frames.
FAST = ("wan",)
every_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(TINY_MODELS)]
)
# Without classes whose blocks another one has, for tests of what blocks do.
ALIKE = ("asymmetric", "flux2", "hunyuan_image", "kvae_image", "vidtok_fsq")
every_kind = pytest.mark.parametrize("name", [mark for mark in every_model.args[1] if mark.values[0] not in ALIKE])


BEFORE_AND_AFTER_PROBING: dict[str, tuple[dict[str, object], dict[str, object]]] = {}


@cache
def shared(name: str) -> DiffusersAutoencoder:
    """Return a model for tests that do not change it. Accepted sizes and the last layer are probed only once."""
    model = DiffusersAutoencoder(tiny_model(name))
    before = state_of(model)
    model.check_clip(*CLIPS[name])
    assert model.last_layer.requires_grad
    with pytest.raises(ValueError, match="height"):
        model.check_clip(CLIPS[name][0], 15, 15)
    BEFORE_AND_AFTER_PROBING[name] = before, state_of(model)
    return model


def state_of(model: DiffusersAutoencoder) -> dict[str, object]:
    """Return copies of what probing must not change."""
    return {
        "random numbers": torch.get_rng_state(),
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
        "training": [float(module.training) for module in model.modules()],
    }


@cache
def pickled(name: str) -> bytes:
    """Return `shared(name)` pickled, which is copied several times as fast."""
    return pickle.dumps(shared(name))


def adapter(name: str) -> DiffusersAutoencoder:
    """Return a copy of `shared(name)` for tests that change it."""
    model: DiffusersAutoencoder = pickle.loads(pickled(name))
    torch.manual_seed(0)  # the same whether `shared` had to build the model or not
    return model
