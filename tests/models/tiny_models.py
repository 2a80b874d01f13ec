"""The autoencoders of diffusers with random weights, each as small as its class allows."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from telecine.models.diffusers import DiffusersAutoencoder, loading


@dataclass(frozen=True)
class TinyModel:
    """A class of diffusers with its settings, and the smallest clip, (frames, height, width), that uses all weights."""

    cls: str
    clip: tuple[int, int, int]
    settings: dict[str, Any]


BLOCKS = {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1}
NORMED_BLOCKS = {**BLOCKS, "norm_num_groups": 2}
FIVE_BLOCKS = {**BLOCKS, "block_out_channels": (16, 16, 16, 16, 16)}
WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
VIDTOK = {"ch": 8, "ch_mult": [1, 1, 1, 1], "z_channels": 4, "num_res_blocks": 1}
LTX = {
    "latent_channels": 8,
    "block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
}
KL_IMAGE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (4, 4),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}


def for_both(**settings):
    """Return settings that an encoder and a decoder have separately."""
    return {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in settings.items()
    }


VIDEO_MODELS = {
    "cogvideox": TinyModel("AutoencoderKLCogVideoX", (9, 16, 16), NORMED_BLOCKS),
    "wan": TinyModel("AutoencoderKLWan", (5, 16, 16), WAN),
    "wan_residual": TinyModel(
        "AutoencoderKLWan",
        (5, 32, 32),
        {
            **WAN,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        },
    ),
    "qwen_image": TinyModel("AutoencoderKLQwenImage", (5, 16, 16), WAN),
    "ltx_video": TinyModel("AutoencoderKLLTXVideo", (9, 32, 32), LTX),
    "ltx_video_with_timestep": TinyModel(
        "AutoencoderKLLTXVideo", (9, 32, 32), {**LTX, "timestep_conditioning": True}
    ),
    "ltx2_video": TinyModel(
        "AutoencoderKLLTX2Video",
        (9, 64, 64),
        {
            **LTX,
            "decoder_block_out_channels": (8, 16, 32),
            "decoder_layers_per_block": (1, 1, 1, 1),
        },
    ),
    "hunyuan_video": TinyModel("AutoencoderKLHunyuanVideo", (5, 16, 16), NORMED_BLOCKS),
    "hunyuan_video15": TinyModel("AutoencoderKLHunyuanVideo15", (5, 32, 32), FIVE_BLOCKS),
    "hunyuan_image_refiner": TinyModel(
        "AutoencoderKLHunyuanImageRefiner", (5, 32, 32), FIVE_BLOCKS
    ),
    "cosmos": TinyModel(
        "AutoencoderKLCosmos",
        (9, 32, 32),
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "attention_resolutions": (8,),
            "resolution": 64,
            "num_layers": 1,
        },
    ),
    "mochi": TinyModel(
        "AutoencoderKLMochi",
        (7, 16, 16),
        {
            "latent_channels": 4,
            "layers_per_block": (1, 1, 1, 1, 1),
            **for_both(block_out_channels=(32, 32, 32, 32)),
        },
    ),
    "allegro": TinyModel("AutoencoderKLAllegro", (4, 16, 16), NORMED_BLOCKS),
    "magvit": TinyModel("AutoencoderKLMagvit", (5, 16, 16), NORMED_BLOCKS),
    "temporal_decoder": TinyModel(
        "AutoencoderKLTemporalDecoder",
        (3, 16, 16),
        {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "block_out_channels": (32, 32, 32, 32),
            "layers_per_block": 2,
        },
    ),
    "kvae_video": TinyModel(
        "AutoencoderKLKVAEVideo",
        (5, 16, 16),
        {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "z_channels": 4},
    ),
    "minimax_h3": TinyModel(
        "AutoencoderKLMiniMaxH3",
        (22, 32, 32),
        {
            **NORMED_BLOCKS,
            "block_out_channels": (4, 4, 4, 4, 4, 4),
            "decoder_num_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_attention_head_dim": 16,
            "latents_mean": (0.0,) * 4,
            "latents_std": (1.0,) * 4,
        },
    ),
    "kandinsky6_sr": TinyModel(
        "Kandinsky6SRVAE",
        (5, 32, 32),
        {
            "latent_channels": 4,
            "layers_per_block": 1,
            **for_both(block_out_channels=(8, 8, 8, 8, 8)),
        },
    ),
    "vidtok": TinyModel("AutoencoderVidTok", (5, 16, 16), VIDTOK),
    "vidtok_fsq": TinyModel(
        "AutoencoderVidTok",
        (5, 16, 16),
        {**VIDTOK, "double_z": False, "regularizer": "fsq", "codebook_size": 8**4},
    ),
}
# They encode each frame by itself, so that images are clips of one frame.
IMAGE_MODELS = {
    "qwen_image21": TinyModel(
        "AutoencoderKLQwenImage21",
        (2, 32, 32),
        {
            **WAN,
            "decoder_base_dim": 4,
            "dim_mult": [1, 1, 1, 1, 1],
            "in_channels": 4,
            "out_channels": 4,
        },
    ),
    # The class of Stable Diffusion, as Flux has it.
    "kl_image": TinyModel(
        "AutoencoderKL",
        (2, 8, 8),
        {**KL_IMAGE, "shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "flux2": TinyModel("AutoencoderKLFlux2", (2, 8, 8), KL_IMAGE),
    "asymmetric": TinyModel(
        "AsymmetricAutoencoderKL",
        (2, 8, 8),
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "down_block_out_channels": (4, 4),
            "up_block_out_channels": (4, 4),
            "latent_channels": 4,
            "norm_num_groups": 2,
        },
    ),
    "hunyuan_image": TinyModel(
        "AutoencoderKLHunyuanImage",
        (2, 8, 8),
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
            "spatial_compression_ratio": 2,
            "sample_size": 32,
        },
    ),
    "kvae_image": TinyModel(
        "AutoencoderKLKVAE",
        (2, 8, 8),
        {
            "channels": 32,
            "ch_mult": (1, 1),
            "num_enc_blocks": 1,
            "num_dec_blocks": 1,
            "z_channels": 4,
        },
    ),
    "dc_ae": TinyModel(
        "AutoencoderDC",
        (2, 8, 8),
        {
            "latent_channels": 4,
            "attention_head_dim": 4,
            **for_both(
                block_types=["ResBlock", "EfficientViTBlock"],
                block_out_channels=(4, 8),
                layers_per_block=(1, 1),
                qkv_multiscales=((), (5,)),
            ),
        },
    ),
    "tiny_image": TinyModel(
        "AutoencoderTiny",
        (2, 8, 8),
        {
            **for_both(block_out_channels=(4, 4)),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
    ),
    "vq_image": TinyModel("VQModel", (2, 8, 8), {**KL_IMAGE, "num_vq_embeddings": 16}),
    # A decoder with a frozen encoder, for images of 32 x 32 pixels alone.
    "rae": TinyModel(
        "AutoencoderRAE",
        (2, 32, 32),
        {
            "encoder_hidden_size": 4,
            "encoder_num_hidden_layers": 1,
            "decoder_hidden_size": 8,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 8,
            "encoder_input_size": 28,
            "latents_mean": [0.5],
            "latents_std": [2.0],
        },
    ),
}
TINY_MODELS = {**VIDEO_MODELS, **IMAGE_MODELS}
CLIPS = {name: model.clip for name, model in TINY_MODELS.items()}

# Changes of some models for tests of runs, which need not have all levels.
FEW_LEVELS = {
    "cogvideox": {
        "block_out_channels": (8, 8),
        "down_block_types": ("CogVideoXDownBlock3D",) * 2,
        "up_block_types": ("CogVideoXUpBlock3D",) * 2,
        "temporal_compression_ratio": 2,
    },
    "wan": {"dim_mult": [1, 1], "temperal_downsample": [True]},
    "ltx_video": {
        "block_out_channels": (8, 8),
        "down_block_types": ("LTXVideoDownBlock3D",) * 2,
        "layers_per_block": (1, 1, 1),
        "spatio_temporal_scaling": (True, False),
        "decoder_block_out_channels": (8, 8),
        "decoder_layers_per_block": (1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, False),
        "decoder_inject_noise": (False,) * 3,
        "upsample_residual": (False,) * 2,
        "upsample_factor": (1, 1),
    },
    "temporal_decoder": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
    },
}

# A decoder for the latents of `ltx2_video`.
DIFFUSION_DECODER = TinyModel(
    "LTX2VideoDiffusionDecoderModel",
    (9, 64, 64),
    {
        "latent_channels": 8,
        "decoder_head_dim": 8,
        "decoder_stage_channels": (16, 8, 8, 8, 8),
        "decoder_stage_depths": (1, 1, 1, 1, 1),
        "decoder_stage_kernels": ((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 2, 2)),
        "decoder_stage5_kernel": (5, 3, 5),
        "decoder_upsample_channel_reductions": (2, 1, 1, 1),
        "decoder_t_emb_dim": 16,
    },
)


class Encoder(nn.Module):
    """Stands in for a network of transformers, which tests need not have: patches of 14 x 14 pixels become tokens."""

    def __init__(self, hidden_size):
        super().__init__()
        self.embed = nn.Conv2d(3, hidden_size, 14, stride=14)


def tokens_of(encoder, images):
    return encoder.embed(images).flatten(2).transpose(1, 2)


def replace_transformers():
    """Let `AutoencoderRAE` have an `Encoder`."""
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_rae")
    module._build_encoder = lambda hidden_size, **_: Encoder(hidden_size).requires_grad_(False)
    module._ENCODER_FORWARD_FNS["dinov2"] = tokens_of
    loading.is_transformers_available = lambda: True


def tiny_model(name, seed=0, **changes):
    """Return the model of this name with the weights of a seed, or skip the test: diffusers 0.36 lacks some."""
    model = DIFFUSION_DECODER if name == "ltx2_diffusion_decoder" else TINY_MODELS[name]
    cls = getattr(diffusers, model.cls, None) or pytest.skip(
        f"diffusers {diffusers.__version__} has no {model.cls}"
    )
    if name == "rae":
        replace_transformers()
    torch.manual_seed(seed)
    return cls(**{**model.settings, **changes})


def tiny_clip(name, batch=1, seed=0):
    """Return random clips of the model's size, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(batch, 3, *CLIPS[name], generator=generator) - 1


# The model for `pytest -m "not slow"`: it clamps, and caches frames.
FAST = ("wan",)
every_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in sorted(TINY_MODELS)
    ],
)
# Without classes whose blocks another one has, for tests of what blocks do.
ALIKE = ("asymmetric", "flux2", "hunyuan_image", "kvae_image", "vidtok_fsq")
every_kind = pytest.mark.parametrize(
    "name", [mark for mark in every_model.args[1] if mark.values[0] not in ALIKE]
)


# Models that keep frames between chunks, and the frames of a video of several chunks. The last chunk is shorter where
# it may be.
STREAMED = {
    "wan": 13,
    "wan_residual": 9,
    "qwen_image": 9,
    "magvit": 9,
    "cogvideox": 17,
    "kandinsky6_sr": 21,
    "kvae_video": 25,
}
BEFORE_AND_AFTER_PROBING = {}


@cache
def shared(name):
    """Return a model for tests that do not change it. Accepted sizes and the last layer are probed only once."""
    model = DiffusersAutoencoder(tiny_model(name))
    before = state_of(model)
    model.check_clip(*CLIPS[name])
    assert model.last_layer.requires_grad
    with pytest.raises(ValueError, match="height"):
        model.check_clip(CLIPS[name][0], 15, 15)
    BEFORE_AND_AFTER_PROBING[name] = before, state_of(model)
    return model


def state_of(model):
    """Return copies of what probing must not change."""
    return {
        "random numbers": torch.get_rng_state(),
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
        "training": [float(module.training) for module in model.modules()],
    }


class WithoutTensors(pickle.Pickler):
    """Pickles the structure of a model; its tensors are numbers, and are listed in `tensors`."""

    def __init__(self, file):
        super().__init__(file)
        self.tensors = []
        self.numbers = {}

    def persistent_id(self, value):
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self.numbers[id(value)]


class WithCopies(pickle.Unpickler):
    """Reads what `WithoutTensors` has pickled, with a copy of each tensor."""

    def __init__(self, file, tensors):
        super().__init__(file)
        self.copies = [copy.deepcopy(tensor) for tensor in tensors]

    def persistent_load(self, number):
        return self.copies[number]


@cache
def pickled(name):
    """Return `shared(name)` pickled, and its tensors, which are copied many times as fast as a model."""
    file = io.BytesIO()
    pickler = WithoutTensors(file)
    pickler.dump(shared(name))
    return file.getvalue(), pickler.tensors


def adapter(name):
    """Return a copy of `shared(name)` for tests that change it."""
    structure, tensors = pickled(name)
    model = WithCopies(io.BytesIO(structure), tensors).load()
    torch.manual_seed(0)  # the same whether `shared` had to build the model or not
    return model
