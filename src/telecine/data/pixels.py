"""Between decoded bytes and the video that models see."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.shapes import argument_error


def video_from_bytes(frames: Tensor) -> Tensor:
    """Convert uint8 frames `(..., T, H, W, C)` to float32 video `(..., C, T, H, W)` in [-1, 1]."""
    if frames.dtype != torch.uint8 or frames.ndim < 4:
        raise argument_error("frames", "uint8 of shape (..., T, H, W, C)", frames, "Pass decoded frames as they are.")
    moved = frames.movedim(-1, -4).to(torch.float32, memory_format=torch.contiguous_format)
    return moved.div_(127.5).sub_(1.0)


def bytes_from_video(video: Tensor) -> Tensor:
    """Convert floating-point video `(..., C, T, H, W)` in [-1, 1] to uint8 frames `(..., T, H, W, C)`.

    Values are clamped and rounded, which undoes `video_from_bytes` exactly.
    """
    if not video.is_floating_point() or video.ndim < 4:
        raise argument_error("video", "floating point of shape (..., C, T, H, W)", video, "Pass [-1, 1] video.")
    scaled = video.detach().float().add(1.0).mul_(127.5).clamp_(0.0, 255.0).round_()
    return scaled.to(torch.uint8).movedim(-4, -1).contiguous()
