"""One clip cut out of a video: read, cropped, mirrored, and converted to what models see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor
from torch.nn import functional as F

from telecine.data.bucket import Bucket
from telecine.data.config import ClipConfig
from telecine.data.decode import read_clip
from telecine.data.pixels import video_from_bytes
from telecine.data.split import Span


class Clip(TypedDict):
    """One item of a `ClipDataset`."""

    video: Tensor
    """float32 in [-1, 1], shape `(C, T, H, W)`."""
    source: str
    """The file it comes from."""
    start: int
    """Position of its first frame in that file."""


@dataclass(frozen=True)
class Cut:
    """Where a clip is, and what is done to it."""

    span: Span
    start: int
    window: float
    """Side of the crop, as a multiple of the clip's, before it is resized to it."""
    top: float
    """Place of the crop between the top edge at 0 and the bottom edge at 1."""
    left: float
    flip: bool


def read_frames(cut: Cut, bucket: Bucket, config: ClipConfig) -> Tensor:
    """Decode the frames of a clip, uint8 `(T, H, W, 3)`, as large as the crop needs.

    Raises:
        DecodeError: a frame is broken or missing.
    """
    info = cut.span.info
    size = bucket.covered_by(info, config.scale_jitter)
    return read_clip(info, cut.start, bucket.num_frames, config.stride, size)


def finish(frames: Tensor, cut: Cut, bucket: Bucket) -> Clip:
    """Return the clip that decoded frames make."""
    return {"video": _augment(frames, cut, bucket), "source": str(cut.span.info.path), "start": cut.start}


def _augment(frames: Tensor, cut: Cut, bucket: Bucket) -> Tensor:
    """Crop, mirror and convert to `(C, T, H, W)` in [-1, 1]; resize only what was drawn larger than the clip."""
    size = (bucket.height, bucket.width)
    height, width = (min(round(side * cut.window), limit) for side, limit in zip(size, frames.shape[1:3], strict=True))
    top = round(cut.top * (frames.shape[1] - height))
    left = round(cut.left * (frames.shape[2] - width))
    frames = frames[:, top : top + height, left : left + width]
    video = video_from_bytes(frames.flip(2) if cut.flip else frames)
    if (height, width) == size:
        return video
    resized = F.interpolate(video.transpose(0, 1), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.transpose(0, 1).contiguous()
