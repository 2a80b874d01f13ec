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
from telecine.models.clip_sizes import ClipSizes, check_multiple, size_error
from telecine.models.diffusers.families import CLASSES, TIME_COMPRESSION, DiffusersModel, Family, clear_caches
from telecine.ops.checkpointing import checkpoint_module

# Relative difference of all gradients that rounding may cause. The wrong ones found differ by 0.5 and more.
_MAX_DIFFERENCE = 1e-2
# A clip of this many frames, or a few more, is more than one chunk of the models that work in chunks.
_NUM_FRAMES = 5
CHECKPOINTED_BLOCKS: dict[str, list[str]] = CLASSES["checkpointed_blocks"]
CHUNKS: dict[str, int] = CLASSES["chunks"]
# The attribute of layers of Magvit that holds these frames. Others keep them in lists or dicts among the arguments.
_CACHE_NAME = "prev_features"


def enable_checked(module: DiffusersModel, sizes: ClipSizes) -> None:
    """Enable a diffusers model's gradient checkpointing, or raise a `ValueError` if a tiny clip's gradients change."""
    if not hasattr(module, "enable_gradient_checkpointing"):
        raise _unsupported(module, "one without it")
    plain = _gradients(sizes)
    try:
        enable(module)
    except ValueError as error:
        raise _unsupported(module, "one that does not support it") from error
    try:
        found = _gradients(sizes)
    except RuntimeError as error:
        _disable(module)
        raise _unsupported(module, f"one whose backward pass fails with it ({type(error).__name__})") from error
    changes = [a - b for a, b in zip(found, plain, strict=True)]
    difference = float(nn.utils.get_total_norm(changes) / nn.utils.get_total_norm(plain))
    if not difference <= _MAX_DIFFERENCE:  # also true for NaN
        _disable(module)
        raise _unsupported(module, f"one whose gradients change by {difference:.0%} with it")


def enable(module: DiffusersModel) -> None:
    """Enable checkpointing: the class's own, or ours of the blocks of `CHECKPOINTED_BLOCKS`."""
    if type(module).__name__ not in CHECKPOINTED_BLOCKS:
        module.enable_gradient_checkpointing()
    for block in _blocks(module):
        checkpoint_module(block, _CACHE_NAME)


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
    return argument_error(type(module).__name__, contract, got, "Train it without `model_gradient_checkpointing`.")


def _gradients(sizes: ClipSizes) -> list[Tensor]:
    """Return the gradients of all trained weights for a fixed tiny clip; buffers and random state do not change."""
    reconstruct = sizes.reconstruct
    is_frozen = not any(parameter.requires_grad for parameter in reconstruct.parameters())  # for LoRA
    weights = [each.requires_grad_() for each in reconstruct.parameters() if is_frozen or each.requires_grad]
    device = weights[0].device
    buffers = {name: buffer.clone() for name, buffer in reconstruct.named_buffers()}
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.enable_grad(), autocast_off(device), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        # A few small frames, or one if the model does not support more.
        _, height, width = sizes.smallest
        lengths = filter(sizes.reproduces_length, range(_NUM_FRAMES, 4 * _NUM_FRAMES))
        video = 2 * torch.rand(1, sizes.in_channels, next(lengths, sizes.smallest[0]), height, width) - 1
        output = functional_call(reconstruct, buffers, (video.to(device),))
        loss = (output * torch.randn(output.shape).to(output)).mean()
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
    if is_frozen:
        reconstruct.requires_grad_(False)
    clear_caches(sizes.model)
    return list(found)


def enable_chunks(module: DiffusersModel, family: Family, num_frames: int) -> Family:
    """Compute clips of a class in `CHUNKS` in chunks of `num_frames` frames, and return how the model is called now."""
    name = type(module).__name__
    own = CHUNKS[name]
    check_count("temporal_chunk", num_frames)
    if name in CLASSES["any_chunk"]:
        check_multiple("temporal_chunk", num_frames, step=own)
    elif num_frames != own:
        raise size_error("temporal_chunk", num_frames, accepted=str(own), nearest=own)
    if name == "AutoencoderKLMagvit":
        module.num_sample_frames_batch_size = num_frames
        module.num_latent_frames_batch_size = num_frames // TIME_COMPRESSION
    elif name in CLASSES["any_chunk"]:  # Wan and QwenImage, which are called with larger chunks than their own
        options = {"num_frames": num_frames}
        family = replace(family, encoder=partial(family.encoder, **options), decoder=partial(family.decoder, **options))
    for part in (module.encoder, module.decoder):
        checkpoint_module(part, _CACHE_NAME)
    return family
