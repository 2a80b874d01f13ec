"""Which part of the reconstructions counts: a mask, and a weight for each clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from telecine.shapes import Video, argument_error


def within(mask: Tensor | None, *, reconstruction: Video, target: Video) -> Video:
    """Return the reconstruction with everything outside the mask put right, so that no term sees or trains it."""
    return reconstruction if mask is None else torch.where(mask, reconstruction, target.to(reconstruction.dtype))


def without_broken_pixels(mask: Tensor | None, target: Video) -> Video:
    """Return the target with what is masked out and not finite set to 0, which would otherwise reach every term."""
    return target if mask is None else torch.where(mask | torch.isfinite(target), target, torch.zeros_like(target))


def share(mask: Tensor | None, *, like: Video) -> Tensor | float:
    """Return the share of the elements that count, from 0 to 1."""
    return 1.0 if mask is None else mask.expand_as(like).float().mean()


def clip_weights(counted: Tensor | float, sample_weight: Tensor | None, *, like: Video) -> Tensor | None:
    """Return the weight of each clip's error, `(B,)` in float32, or None where all are 1.

    An error is averaged over a whole video, of which only the share that counts can differ from 0: dividing by it
    makes the error the mean over what counts. Where nothing counts, weights are 0.
    """
    if isinstance(counted, float) and sample_weight is None:
        return None
    weight = torch.ones(len(like), device=like.device) if sample_weight is None else sample_weight.float()
    if isinstance(counted, float):
        return weight
    return weight * torch.where(counted > 0, 1 / counted, torch.zeros_like(counted))


def frame_weights(clip_weight: Tensor | None, indices: Tensor) -> Tensor:
    """Return the weight `(B k,)` of each sampled frame, `indices` (B, k), such that the weighted sum is the mean."""
    batch, num_frames = indices.shape
    if clip_weight is None:
        return torch.full((batch * num_frames,), 1 / (batch * num_frames), device=indices.device)
    return (clip_weight / (batch * num_frames)).repeat_interleave(num_frames)


def check_mask(mask: Any, like: Video) -> None:
    """Raise a `ValueError` unless it is None or a bool tensor that broadcasts to the videos' shape."""
    if mask is None:
        return
    contract = f"a bool tensor that broadcasts to {tuple(like.shape)} on {like.device}, True for what counts"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.device != like.device:
        raise argument_error("mask", contract, mask, "Make one with, for instance, `weights > 0`.")
    fits = mask.ndim == like.ndim and all(size in (1, full) for size, full in zip(mask.shape, like.shape, strict=True))
    if not fits:
        remedy = "Keep all five axes: (B, 1, T, 1, 1) masks frames, (B, 1, T, H, W) masks pixels."
        raise argument_error("mask", contract, mask, remedy)


def check_sample_weight(weight: Any, like: Video) -> None:
    """Raise a `ValueError` unless it is None or a floating-point tensor `(B,)`."""
    if weight is None:
        return
    fits = isinstance(weight, Tensor) and weight.shape == like.shape[:1] and weight.is_floating_point()
    if not fits or weight.device != like.device:
        contract = f"a floating-point tensor of shape ({len(like)},) on {like.device}"
        raise argument_error("sample_weight", contract, weight, "Give each clip of the batch one weight.")
