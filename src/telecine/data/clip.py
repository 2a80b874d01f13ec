"""From decoded frames to a clip: its size, crop, flip, turn, and conversion to [-1, 1]."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.shapes import RGBA
from telecine.data.clip_frames import ClipFrames
from telecine.data.decode import read_frames
from telecine.data.pixels import resize_with_alpha
from telecine.data.source import Span, VideoInfo
from telecine.settings import Bucket, ClipConfig


class Clip(TypedDict):
    """Frames for the model, and their source."""

    video: Tensor  # float32 in [-1, 1], shape `(C, T, H, W)`
    source: str  # the file
    start: int  # index of its first frame in that file
    fps: float  # its frames per second


@dataclass(frozen=True)
class ClipSpec:
    """The frames of a clip, and their crop and flips: by default the crop at the centre, without zoom and flips."""

    span: Span
    start: int  # index of the first frame in the video
    zoom: float = 1.0  # 1 shows all but what the crop cuts off; `scale_jitter` is the most
    top: float = 0.5  # position of the crop, from 0 at the top to 1 at the bottom
    left: float = 0.5  # from 0 at the left to 1 at the right
    flip: bool = False  # left to right
    upside_down: bool = False  # flipped top to bottom
    transpose: bool = False  # whether rows and columns are then exchanged
    stride: int = 1  # distance of the frames in the video
    fps: float | None = None
    """Frames per second of a clip by time, whose frames `stride` does not say."""

    @property
    def orientation(self) -> str:
        """How the clip is mirrored and then turned, in words; empty if it is neither."""
        words = []
        num_mirrorings = self.flip + self.upside_down + self.transpose
        if num_mirrorings % 2 == 1:  # two mirrorings are a turn
            words.append("mirrored")
        if self.transpose and self.upside_down:
            words.append("turned by 90° to the right")
        elif self.transpose:
            words.append("turned by 90° to the left")
        elif self.upside_down:
            words.append("turned by 180°")
        return ", ".join(words)


def decoded_size(spec: ClipSpec, bucket: Bucket) -> tuple[int, int]:
    """Return the height and width of the frames of which a clip is a crop."""
    info = spec.span.info
    return bucket.decode_size(info.height, info.width, spec.zoom)


def decode_clip(
    spec: ClipSpec, bucket: Bucket, config: ClipConfig, *, file: VideoInfo | None = None
) -> Tensor:
    """Decode the frames of a clip at the size before its crop. They are resized once, so they stay sharp.

    Args:
        spec: The frames to decode.
        bucket: The size of the clip.
        config: Its `channels` and `bit_depth` determine the values of the frames, see also `decoded_size`.
        file: A file of the same size with as many frames, from which the same frames are read. None: that of the clip.

    Returns:
        Frames `(T, H, W, C)`, see `read_clip`.
    """
    info = spec.span.info
    frames = ClipFrames.of(bucket, config)
    return read_frames(
        file or info,
        frames.indices(info, spec.start),
        size=decoded_size(spec, bucket),
        max_pixels=config.max_pixels,
        pixels=config.pixel_format,
    )


def make_clip(frames: Tensor, spec: ClipSpec, bucket: Bucket) -> Clip:
    """Crop, flip and convert decoded frames.

    Args:
        frames: Decoded frames `(T, H, W, C)`, at least as large as the clip, see `decode_clip`.
        spec: The crop and the flips.
        bucket: The size of the clip.
    """
    num_rows, num_columns = frames.shape[1:3]
    top = round(spec.top * (num_rows - bucket.height))
    left = round(spec.left * (num_columns - bucket.width))
    frames = frames[:, top : top + bucket.height, left : left + bucket.width]
    flipped_axes = []
    if spec.upside_down:
        flipped_axes.append(1)
    if spec.flip:
        flipped_axes.append(2)
    if flipped_axes:
        frames = _flip(frames, flipped_axes)
    if spec.transpose:
        frames = frames.transpose(1, 2)
    info = spec.span.info
    return {
        "video": video_from_bytes(frames),
        "source": str(info.source),
        "start": spec.start,
        "fps": info.fps / spec.stride if spec.fps is None else spec.fps,
    }


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize decoded frames with an antialiased bicubic filter, RGBA with colours multiplied by alpha meanwhile.

    Args:
        frames: uint8, uint16 or float32 `(T, H, W, C)`, see `telecine.data.read_clip`.
        size: Height and width of the result.

    Returns:
        Frames of the same type.
    """
    channels_first = frames.movedim(-1, 1)
    if frames.shape[-1] == RGBA and frames.dtype != torch.float32:
        white = 255 if frames.dtype == torch.uint8 else 65535
        with_alpha = resize_with_alpha(channels_first.double() / white, size)
        return (with_alpha * white).round().to(frames.dtype).movedim(1, -1)
    if frames.dtype == torch.uint16:  # which PyTorch does not resize
        channels_first = channels_first.float()
    resized = F.interpolate(channels_first, size, mode="bicubic", antialias=True).movedim(1, -1)
    if frames.dtype == torch.uint8:
        return resized
    if frames.dtype == torch.float32:
        return resized.clamp_(-1, 1)
    return resized.round_().clamp_(0, 65535).to(torch.uint16)


def _flip(frames: Tensor, axes: list[int]) -> Tensor:
    if frames.dtype == torch.uint16:  # PyTorch does not flip uint16
        return frames.view(torch.int16).flip(axes).view(torch.uint16)
    return frames.flip(axes)


def video_from_bytes(frames: Tensor) -> Tensor:
    """Convert decoded frames to video for the model. Integers are scaled to [-1, 1]; float32 keeps its values.

    Args:
        frames: `(..., T, H, W, C)`: uint8, uint16, or float32 in [-1, 1].

    Returns:
        float32 `(..., C, T, H, W)` in [-1, 1].

    Raises:
        ValueError: `frames` has another type or fewer than four axes.
    """
    has_axes = frames.ndim >= 4
    if frames.dtype == torch.float32 and has_axes:
        return frames.movedim(-1, -4).contiguous()
    if frames.dtype not in (torch.uint8, torch.uint16) or not has_axes:
        raise argument_error(
            "frames",
            "uint8, uint16 or float32 of shape (..., T, H, W, C)",
            frames,
            "Pass decoded frames.",
        )
    half = 127.5 if frames.dtype == torch.uint8 else 32767.5
    video = frames.movedim(-1, -4).to(torch.float32, memory_format=torch.contiguous_format)
    return video.div_(half).sub_(1.0)


def bytes_from_video(video: Tensor, bit_depth: Literal[8, 16] = 8) -> Tensor:
    """Convert video to frames of integers, rounded and clamped.

    It inverts `video_from_bytes` exactly for uint8 and uint16. Frames of float32 need no conversion but of their axes.

    Args:
        video: Floating point `(..., C, T, H, W)` in [-1, 1].
        bit_depth: 8 for uint8, 16 for uint16.

    Returns:
        Frames `(..., T, H, W, C)`.

    Raises:
        ValueError: `video` is not floating point, or has fewer than four axes.
    """
    if not video.is_floating_point() or video.ndim < 4:
        raise argument_error(
            "video", "floating point of shape (..., C, T, H, W)", video, "Pass video in [-1, 1]."
        )
    if bit_depth == 8:
        half = 127.5
        dtype = torch.uint8
    else:
        half = 32767.5
        dtype = torch.uint16
    scaled = video.detach().float().add(1.0).mul_(half).clamp_(0.0, 2 * half).round_()
    return scaled.to(dtype).movedim(-4, -1).contiguous()


def pixels_sha256(frames: Tensor) -> str:
    """Return the hash of the pixels of a clip, uint8 frames `(T, H, W, C)`."""
    return hashlib.sha256(frames.cpu().numpy().tobytes()).hexdigest()


def clips_sha256(hashes: Iterable[str]) -> str:
    """Return one hash for clips from the `pixels_sha256` of each clip, in order. Equal hashes mean equal clips."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
