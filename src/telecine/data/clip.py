"""From decoded frames to a clip: its size, crop, flip, turn, and conversion to [-1, 1]."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.data.decode import read_clip
from telecine.data.source import Span
from telecine.settings import Bucket, ClipConfig


class Clip(TypedDict):
    """Frames for the model, and their source."""

    video: Tensor  # float32 in [-1, 1], shape `(C, T, H, W)`
    source: str  # the file
    start: int  # index of its first frame in that file
    fps: float  # its frames per second


@dataclass(frozen=True)
class ClipSpec:
    """The frames of a clip, and their crop and flips."""

    span: Span
    start: int  # index of the first frame in the video
    crop_scale: float  # side of the crop relative to the side of the clip; the crop is resized to the clip
    top: float  # position of the crop, from 0 at the top to 1 at the bottom
    left: float  # from 0 at the left to 1 at the right
    flip: bool  # left to right
    upside_down: bool = False  # flipped top to bottom
    transpose: bool = False  # whether rows and columns are then exchanged
    stride: int = 1  # distance of the frames in the video

    @property
    def orientation(self) -> str:
        """How the clip is mirrored and then turned, in words; empty if it is neither."""
        mirrored = "mirrored" if self.flip ^ self.upside_down ^ self.transpose else ""
        if self.transpose:
            turned = f"turned by 90° to the {'right' if self.upside_down else 'left'}"
        else:
            turned = "turned by 180°" if self.upside_down else ""
        return ", ".join(filter(None, (mirrored, turned)))


def decode_clip(spec: ClipSpec, bucket: Bucket, config: ClipConfig) -> Tensor:
    """Decode the frames of a clip, `(T, H, W, C)` of `config.bit_depth`, at the size before its crop."""
    info = spec.span.info
    size = bucket.decode_size(info.height, info.width, config.scale_jitter)
    return read_clip(info, spec.start, bucket.num_frames, config.stride, size, config.max_pixels, config.pixel_format)


def make_clip(frames: Tensor, spec: ClipSpec, bucket: Bucket) -> Clip:
    """Crop, flip and convert decoded frames `(T, H, W, C)`. Resize the crop if it is larger than the clip."""
    size = (bucket.height, bucket.width)
    sides = zip(size, frames.shape[1:3], strict=True)
    height, width = (min(round(side * spec.crop_scale), limit) for side, limit in sides)
    top = round(spec.top * (frames.shape[1] - height))
    left = round(spec.left * (frames.shape[2] - width))
    frames = frames[:, top : top + height, left : left + width]
    axes = [axis for axis, is_flipped in ((1, spec.upside_down), (2, spec.flip)) if is_flipped]
    stored = frames.view(torch.int16) if frames.dtype == torch.uint16 else frames  # PyTorch does not flip uint16
    frames = stored.flip(axes).view(frames.dtype) if axes else frames
    video = video_from_bytes(frames.transpose(1, 2) if spec.transpose else frames)
    if video.shape[2:] != size:
        resized = F.interpolate(video.transpose(0, 1), size, mode="bilinear", antialias=True, align_corners=False)
        video = resized.transpose(0, 1).contiguous()
    info = spec.span.info
    return {"video": video, "source": str(info.path), "start": spec.start, "fps": info.fps / spec.stride}


def video_from_bytes(frames: Tensor) -> Tensor:
    """Convert uint8 or uint16 frames `(..., T, H, W, C)` to float32 video `(..., C, T, H, W)` in [-1, 1].

    Those of arrays, float32 in [-1, 1], keep their values.
    """
    if frames.dtype == torch.float32 and frames.ndim >= 4:
        return frames.movedim(-1, -4).contiguous()
    if frames.dtype not in (torch.uint8, torch.uint16) or frames.ndim < 4:
        raise argument_error("frames", "uint8 or uint16 of shape (..., T, H, W, C)", frames, "Pass decoded frames.")
    moved = frames.movedim(-1, -4).to(torch.float32, memory_format=torch.contiguous_format)
    return moved.div_(127.5 if frames.dtype == torch.uint8 else 32767.5).sub_(1.0)


def bytes_from_video(video: Tensor, bit_depth: Literal[8, 16] = 8) -> Tensor:
    """Convert floating-point video `(..., C, T, H, W)` in [-1, 1] to uint8 or uint16 frames `(..., T, H, W, C)`.

    Values are rounded and clamped. This is the exact inverse of `video_from_bytes`.
    """
    if not video.is_floating_point() or video.ndim < 4:
        raise argument_error("video", "floating point of shape (..., C, T, H, W)", video, "Pass video in [-1, 1].")
    half, dtype = (127.5, torch.uint8) if bit_depth == 8 else (32767.5, torch.uint16)
    scaled = video.detach().float().add(1.0).mul_(half).clamp_(0.0, 2 * half).round_()
    return scaled.to(dtype).movedim(-4, -1).contiguous()


def pixels_sha256(frames: Tensor) -> str:
    """Return the hash of the pixels of a clip, uint8 frames `(T, H, W, C)`."""
    return hashlib.sha256(frames.cpu().numpy().tobytes()).hexdigest()


def clips_sha256(hashes: Iterable[str]) -> str:
    """Return one hash of clips from `pixels_sha256` of each, in order. Equal hashes mean equal clips."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
