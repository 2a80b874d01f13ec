"""Gradient checkpointing of a diffusers model, enabled only if it does not change the gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from telecine.autoencoders.clip_sizes import ClipSizes, Size
from telecine.autoencoders.diffusers.families import DiffusersModel
from telecine.autoencoders.diffusers.reconstruct import clear_caches
from telecine.base.checks import argument_error
from telecine.base.precision import autocast_off
from telecine.ops.checkpointing import checkpoint_module, undo_checkpoint

# Relative difference of all gradients that rounding may cause. The wrong ones found differ by 0.5 and more.
MAX_DIFFERENCE = 1e-2
# A clip of this many frames, or a few more, is more than one chunk of the models that work in chunks.
NUM_FRAMES = 5


@dataclass(frozen=True)
class CachedBlocks:
    """The blocks of a class that keeps frames for the next chunk, which its own checkpointing does not support."""

    names: tuple[str, ...]
    """Their classes."""
    cache_name: str = ""
    """The attribute of their layers that holds the frames; empty if they are in lists or dicts among the arguments."""


CACHED_BLOCKS = {
    "AutoencoderKLKVAEVideo": CachedBlocks(
        ("KVAECachedResnetBlock3D", "KVAECachedPXSDownsample", "KVAECachedPXSUpsample")
    ),
    "AutoencoderKLMagvit": CachedBlocks(
        ("EasyAnimateResidualBlock3D", "EasyAnimateDownsampler3D", "EasyAnimateUpsampler3D"), "prev_features"
    ),
    "AutoencoderKLQwenImage": CachedBlocks(("QwenImageResidualBlock", "QwenImageAttentionBlock", "QwenImageResample")),
    "AutoencoderKLQwenImage21": CachedBlocks(
        ("QwenImage21ResidualBlock", "QwenImage21AttentionBlock", "QwenImage21Resample")
    ),
    "AutoencoderKLWan": CachedBlocks(("WanResidualBlock", "WanAttentionBlock", "WanResample")),
    "Kandinsky6SRVAE": CachedBlocks(("Kandinsky6SRResnetBlock3D", "Kandinsky6SRDownsample", "Kandinsky6SRUpsample")),
}


def enable_checked(module: DiffusersModel, sizes: ClipSizes) -> None:
    """Enable a diffusers model's gradient checkpointing if its gradients for a tiny clip stay the same.

    Raises:
        ValueError: The class does not support it, fails with it, or computes other gradients. It is disabled then.
    """
    if not hasattr(module, "enable_gradient_checkpointing"):
        raise unsupported(module, "one without it")
    plain = gradients(sizes)
    try:
        enable(module)
    except ValueError as error:
        raise unsupported(module, "one that does not support it") from error
    try:
        difference = relative_difference(gradients(sizes), plain)
    except RuntimeError as error:
        disable(module)
        raise unsupported(module, f"one whose backward pass fails with it ({type(error).__name__})") from error
    if not difference <= MAX_DIFFERENCE:  # also true for NaN
        disable(module)
        raise unsupported(module, f"one whose gradients change by {difference:.0%} with it")


def enable(module: DiffusersModel) -> None:
    """Enable checkpointing: the class's own, or ours of the blocks of `CACHED_BLOCKS`."""
    blocks = CACHED_BLOCKS.get(type(module).__name__)
    if blocks is None:
        module.enable_gradient_checkpointing()
        return
    for block in cached_blocks(module, blocks):
        checkpoint_module(block, blocks.cache_name)


def disable(module: DiffusersModel) -> None:
    """Disable checkpointing, and clear the caches that a failed backward pass left."""
    blocks = CACHED_BLOCKS.get(type(module).__name__)
    if blocks is None:
        module.disable_gradient_checkpointing()
    else:
        for block in cached_blocks(module, blocks):
            undo_checkpoint(block)
    clear_caches(module)


def cached_blocks(module: nn.Module, blocks: CachedBlocks) -> list[nn.Module]:
    """Return the blocks of a model."""
    return [block for block in module.modules() if type(block).__name__ in blocks.names]


def unsupported(module: DiffusersModel, got: str) -> Exception:
    """Return the error for a class that cannot be trained with gradient checkpointing."""
    contract = "a model whose gradients stay the same with gradient checkpointing"
    return argument_error(type(module).__name__, contract, got, "Train it without `model_gradient_checkpointing`.")


def gradients(sizes: ClipSizes) -> list[Tensor]:
    """Return the gradients of all trained weights for a fixed tiny clip; buffers and random state do not change."""
    reconstruct = sizes.reconstruct
    weights = [parameter for parameter in reconstruct.parameters() if parameter.requires_grad]
    device = weights[0].device
    buffers = {name: buffer.clone() for name, buffer in reconstruct.named_buffers()}
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.enable_grad(), autocast_off(device), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        video = 2 * torch.rand(1, 3, *tiny_clip(sizes)) - 1
        output = functional_call(reconstruct, buffers, (video.to(device),))
        loss = (output * torch.randn(output.shape).to(output)).mean()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    clear_caches(sizes.model)
    pairs = zip(weights, found, strict=True)
    return [torch.zeros_like(weight) if gradient is None else gradient for weight, gradient in pairs]


def tiny_clip(sizes: ClipSizes) -> Size:
    """Return the size of a clip of a few small frames, or of one frame if the model does not support more."""
    _, height, width = sizes.smallest
    lengths = range(NUM_FRAMES, 4 * NUM_FRAMES)
    return (next(filter(sizes.reproduces_length, lengths), sizes.smallest[0]), height, width)


def relative_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the norm of the difference between two lists of gradients, relative to the norm of the second."""
    differences = [(a - b).norm() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(differences).norm() / torch.stack([b.norm() for b in expected]).norm())
