"""Less memory for a diffusers model: gradient checkpointing that keeps the gradients, and clips in temporal chunks.

Chunks are for classes that keep frames from one chunk to the next: their encoder and decoder are called once for each,
and each call is computed again in the backward pass, see `checkpoint_call`.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from telecine.base.checks import argument_error, check_count
from telecine.base.precision import autocast_off
from telecine.base.randomness import keep_random_state
from telecine.models.clip_sizes import ClipSizes, check_multiple, size_error
from telecine.models.diffusers import wan
from telecine.models.diffusers.families import Family, clear_caches
from telecine.models.diffusers.outputs import DiffusersModel
from telecine.ops.checkpointing import checkpoint_call, checkpoint_module
from telecine.ops.ranks import ContextGroup, using_context_group

# Relative difference of all gradients that rounding may cause. The wrong ones found differ by 0.5 and more.
_MAX_DIFFERENCE = 1e-2
# A clip of this many frames, or a few more, is more than one chunk of the models that work in chunks.
_NUM_FRAMES = 5
_BLOCKS_OF_IMAGES = (
    "DownEncoderBlock2D",
    "AttnDownEncoderBlock2D",
    "UNetMidBlock2D",
    "UpDecoderBlock2D",
    "AttnUpDecoderBlock2D",
)
CHECKPOINTED_BLOCKS: dict[str, tuple[str, ...]] = {
    "AsymmetricAutoencoderKL": _BLOCKS_OF_IMAGES,
    "AutoencoderDC": ("ResBlock", "EfficientViTBlock"),
    "AutoencoderKLHunyuanImage": ("HunyuanImageResnetBlock", "HunyuanImageMidBlock"),
    "AutoencoderKLKVAEVideo": (
        "KVAECachedResnetBlock3D",
        "KVAECachedPXSDownsample",
        "KVAECachedPXSUpsample",
    ),
    "AutoencoderKLMagvit": (
        "EasyAnimateResidualBlock3D",
        "EasyAnimateDownsampler3D",
        "EasyAnimateUpsampler3D",
    ),
    "AutoencoderKLQwenImage": (
        "QwenImageResidualBlock",
        "QwenImageAttentionBlock",
        "QwenImageResample",
    ),
    "AutoencoderKLQwenImage21": (
        "QwenImage21ResidualBlock",
        "QwenImage21AttentionBlock",
        "QwenImage21Resample",
    ),
    "AutoencoderKLWan": ("WanResidualBlock", "WanAttentionBlock", "WanResample"),
    "AutoencoderRAE": ("ViTMAELayer",),
    "AutoencoderTiny": ("AutoencoderTinyBlock",),
    "Kandinsky6SRVAE": (
        "Kandinsky6SRResnetBlock3D",
        "Kandinsky6SRDownsample",
        "Kandinsky6SRUpsample",
    ),
    "LTX2VideoDiffusionDecoderModel": ("LTX2VideoVaeNABlock", "LTX2VideoVaeDiffusionNABlock"),
    "VQModel": _BLOCKS_OF_IMAGES,
}
"""The blocks of classes whose own gradient checkpointing is missing, does not support frames kept for the next chunk,
or, for AutoencoderTiny, leaves out the conversion of colours to [0, 1]."""
CHUNKS = {
    "AutoencoderKLCogVideoX": 8,
    "AutoencoderKLKVAEVideo": 16,
    "AutoencoderKLMagvit": 4,
    "AutoencoderKLQwenImage": 4,
    "AutoencoderKLWan": 4,
    "Kandinsky6SRVAE": 16,
}
"""Frames of the chunks in which a class computes long clips. The first chunk has one more, or is the first frame."""
ANY_CHUNK = ("AutoencoderKLMagvit", "AutoencoderKLQwenImage", "AutoencoderKLWan")
"""The classes whose chunks may also be multiples of the number in `CHUNKS`. The norms of others depend on the chunk."""
# Frames of a latent frame of Magvit.
_MAGVIT_TIME_COMPRESSION = 4
MAGVIT_CACHE = "prev_features"
"""The attribute of layers of Magvit with the frames that they keep. Others keep them among the arguments."""


def enable_checked(module: DiffusersModel, sizes: ClipSizes) -> None:
    """Enable a diffusers model's gradient checkpointing, if it keeps the gradients of a tiny clip.

    Raises:
        ValueError: The class does not support it, or gradients change.
    """
    if not hasattr(module, "enable_gradient_checkpointing"):
        raise _unsupported(module, "one without it")
    expected = _gradients(sizes)
    try:
        enable(module)
    except ValueError as error:
        raise _unsupported(module, "one that does not support it") from error
    try:
        gradients = _gradients(sizes)
    except RuntimeError as error:
        _disable(module)
        raise _unsupported(
            module, f"one whose backward pass fails with it ({type(error).__name__})"
        ) from error
    changes = [a - b for a, b in zip(gradients, expected, strict=True)]
    difference = float(nn.utils.get_total_norm(changes) / nn.utils.get_total_norm(expected))
    if not difference <= _MAX_DIFFERENCE:  # also true for NaN
        _disable(module)
        raise _unsupported(module, f"one whose gradients change by {difference:.0%} with it")


def enable(module: DiffusersModel) -> None:
    """Enable checkpointing: the class's own, or ours of the blocks of `CHECKPOINTED_BLOCKS`."""
    if type(module).__name__ not in CHECKPOINTED_BLOCKS:
        # Ours remembers the processes that share a clip.
        module.enable_gradient_checkpointing(checkpoint_call)
    for block in _blocks(module):
        checkpoint_module(block, MAGVIT_CACHE)


def _disable(module: DiffusersModel) -> None:
    """Disable checkpointing, and clear the caches that a failed backward pass left."""
    if type(module).__name__ not in CHECKPOINTED_BLOCKS:
        module.disable_gradient_checkpointing()
    for block in _blocks(module):
        del block.forward
    clear_caches(module)


def _blocks(module: DiffusersModel) -> list[nn.Module]:
    names = CHECKPOINTED_BLOCKS.get(type(module).__name__, ())
    return [block for block in module.modules() if type(block).__name__ in names]


def _unsupported(module: DiffusersModel, got: str) -> Exception:
    contract = "a model whose gradients stay the same with gradient checkpointing"
    return argument_error(
        type(module).__name__, contract, got, "Train it without `model_gradient_checkpointing`."
    )


def _gradients(sizes: ClipSizes) -> list[Tensor]:
    """Return the gradients of all trained weights for a fixed tiny clip; buffers and random state do not change."""
    reconstruct = sizes.reconstruct
    weights = [weight for weight in reconstruct.parameters() if weight.requires_grad]
    is_frozen = not weights  # for LoRA
    if is_frozen:
        reconstruct.requires_grad_(True)
        weights = list(reconstruct.parameters())
    device = weights[0].device
    buffers = {name: buffer.clone() for name, buffer in reconstruct.named_buffers()}
    with (
        torch.enable_grad(),
        autocast_off(device),
        keep_random_state(device),
        using_context_group(ContextGroup()),
    ):
        torch.manual_seed(0)
        video = 2 * torch.rand(1, sizes.in_channels, *_checked_clip(sizes)) - 1
        output = functional_call(reconstruct, buffers, (video.to(device),))
        loss = (output * torch.randn(output.shape).to(output)).mean()
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    if is_frozen:
        reconstruct.requires_grad_(False)
    clear_caches(sizes.model)
    return list(gradients)


def _checked_clip(sizes: ClipSizes) -> tuple[int, int, int]:
    """Return the size of a few small frames, or of one if the model does not support more."""
    num_frames, height, width = sizes.smallest
    for length in range(_NUM_FRAMES, 4 * _NUM_FRAMES):
        if sizes.reproduces_length(length):
            return length, height, width
    return num_frames, height, width


def enable_chunks(module: DiffusersModel, family: Family, num_frames: int) -> Family:
    """Compute clips of a class in `CHUNKS` in chunks.

    Args:
        module: The model.
        family: How it is called.
        num_frames: Frames of a chunk: those of `CHUNKS`, or for some classes a multiple.

    Returns:
        How the model is called now.

    Raises:
        ValueError: The class does not support this number of frames.
    """
    name = type(module).__name__
    smallest = CHUNKS[name]
    check_count("temporal_chunk", num_frames)
    if name in ANY_CHUNK:
        check_multiple("temporal_chunk", num_frames, step=smallest)
    elif num_frames != smallest:
        raise size_error("temporal_chunk", num_frames, accepted=str(smallest), nearest=smallest)
    if name == "AutoencoderKLMagvit":
        module.num_sample_frames_batch_size = num_frames
        module.num_latent_frames_batch_size = num_frames // _MAGVIT_TIME_COMPRESSION
    elif name in ANY_CHUNK:  # Wan and QwenImage, which are called with larger chunks than their own
        num_latent_frames = num_frames // wan.TIME_COMPRESSION
        family = replace(
            family,
            encoder=partial(wan.encode_in_chunks, num_frames=num_frames),
            decoder=partial(wan.decode_in_chunks, num_latent_frames=num_latent_frames),
        )
    for part in (module.encoder, module.decoder):
        checkpoint_module(part, MAGVIT_CACHE)
    return family
