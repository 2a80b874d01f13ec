"""Encoding of videos: MP4, lossless MKV and GIF; and frames as they are shown."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypedDict

import av
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self, Unpack

from telecine.base.checks import argument_error, check_positive
from telecine.base.files import partial_path
from telecine.base.shapes import RGBA
from telecine.settings import CHANNELS

# Numbers of ITU-T H.273. Browsers guess the colour space of files without one, by the size of the frames.
_BT709 = _LIMITED_RANGE = 1
# The side of a square of the chequerboard behind transparent pixels, and its two greys.
_SQUARE, _BOARD = 8, (204.0, 153.0)
# By channels and type: the format of an array, and FFV1's without loss.
_STORED = {
    (1, torch.uint8): ("gray", "gray"),
    (3, torch.uint8): ("rgb24", "bgr0"),
    (4, torch.uint8): ("rgba", "bgra"),
    (1, torch.uint16): ("gray16le", "gray16le"),
    (3, torch.uint16): ("rgb48le", "gbrp16le"),
    (4, torch.uint16): ("rgba64le", "gbrap16le"),
}
_MAX_INT = 2**31 - 1  # FFmpeg's fractions have 32 bits


class _Times(TypedDict, total=False):
    """When and how frames are displayed; see `_VideoWriter`."""

    pts: Sequence[int] | None
    time_base: float | None
    sample_aspect_ratio: float


class _VideoWriter(ABC):
    """Writes frames to a file in constant memory. It appears when the `with` block ends, or not at all if it fails.

    Args:
        path: The file. Its folder is created if needed.
        fps: Frames per second.
        pts: When each frame is displayed, in units of `time_base`, from 0; a multiple of `1 / fps` by default.
        time_base: The unit of `pts` in seconds.
        sample_aspect_ratio: Width of a pixel divided by its height when the file is displayed.
    """

    container: ClassVar[str]
    options: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        *,
        pts: Sequence[int] | None = None,
        time_base: float | None = None,
        sample_aspect_ratio: float = 1.0,
    ) -> None:
        check_positive("fps", fps, remedy="Use 25 if it is unknown.")
        self.path = Path(path)
        self._rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))  # exact for 30000/1001
        self._time_base = 1 / self._rate if time_base is None else Fraction(time_base).limit_denominator(_MAX_INT)
        self._pts = pts
        self._aspect = Fraction(sample_aspect_ratio).limit_denominator(255)
        self._shape: tuple[object, ...] = ()
        self._stream: VideoStream | None = None
        self._reformatter = VideoReformatter()
        self._num_frames = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = partial_path(self.path)
        self._container = av.open(str(self._partial), "w", format=self.container, options=self.options)
        return self

    def add(self, frames: Tensor) -> None:
        """Append frames `(T, H, W, C)`, all of one size and kind."""
        frames = self._checked(frames)
        shape = (*frames.shape[1:], frames.dtype)
        if self._stream is None:
            self._shape = shape
            self._stream = self._add_stream(frames[0])
            self._stream.codec_context.time_base = self._time_base
            self._stream.codec_context.sample_aspect_ratio = self._aspect
        if shape != self._shape:
            raise argument_error("frames", f"of height and width {self._shape[:2]}, as before", frames, "Resize them.")
        for pixels in frames.cpu():
            # A time on every frame makes the files of equal frames equal, except rarely under heavy load.
            frame = self._frame(pixels)
            frame.pts = self._num_frames if self._pts is None else self._pts[self._num_frames]
            frame.time_base = self._time_base
            self._num_frames += 1
            self._container.mux(self._stream.encode(frame))

    @abstractmethod
    def _checked(self, frames: Tensor) -> Tensor:
        """Return frames as the format stores them; raise a `ValueError` if it cannot."""

    @abstractmethod
    def _add_stream(self, frame: Tensor) -> VideoStream:
        """Return a new stream for such frames `(H, W, C)`."""

    @abstractmethod
    def _frame(self, pixels: Tensor) -> av.VideoFrame:
        """Return pixels `(H, W, C)` in the format of the stream."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as cleanup:
            cleanup.callback(self._partial.unlink, missing_ok=True)
            cleanup.callback(self._container.close)
            if error is not None:
                return
            if self._stream is None:
                raise argument_error("frames", "at least one frame", f"none for {self.path}", "Add some.")
            self._container.mux(self._stream.encode())
            self._container.close()
            os.replace(self._partial, self.path)


class Mp4Writer(_VideoWriter):
    """Writes uint8 RGB frames to an H.264 MP4 that browsers play.

    The last row or column of frames of odd size is repeated, because the format stores colours at half the resolution.

    Args:
        path, fps, pts, time_base, sample_aspect_ratio: See `_VideoWriter`.
        crf: Quality, from 0 (lossless) to 51; 18 is visually lossless.
        keyframe_every: Distance of keyframes, at which decoding can start; two seconds by default. If set, no frame
            depends on a later one.
    """

    container = "mp4"
    options: ClassVar[dict[str, str]] = {"movflags": "+faststart"}  # browsers then play the file while it loads

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        *,
        crf: int = 18,
        keyframe_every: int | None = None,
        **times: Unpack[_Times],
    ) -> None:
        super().__init__(path, fps, **times)
        self._crf, self._keyframe_every = crf, keyframe_every

    def _checked(self, frames: Tensor) -> Tensor:
        check_frames_of("frames", frames, (3,))
        return pad_to_even(frames)

    def _frame(self, pixels: Tensor) -> av.VideoFrame:
        rgb = av.VideoFrame.from_ndarray(pixels.contiguous().numpy(), format="rgb24")
        return self._reformatter.reformat(
            rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
        )

    def _add_stream(self, frame: Tensor) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(self._crf)}
        context = stream.codec_context
        context.gop_size = self._keyframe_every or max(1, round(2 * self._rate))
        if self._keyframe_every is not None:
            context.max_b_frames = 0
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        return stream


class MkvWriter(_VideoWriter):
    """Writes uint8 or uint16 frames, grey, RGB or RGBA, to a Matroska file without loss, as FFV1.

    Times are rounded to milliseconds, as Matroska has them.
    """

    container = "matroska"

    def _checked(self, frames: Tensor) -> Tensor:
        check_frames_of("frames", frames, CHANNELS.values(), (torch.uint8, torch.uint16))
        return frames

    def _frame(self, pixels: Tensor) -> av.VideoFrame:
        decoded, stored = _STORED[pixels.shape[-1], pixels.dtype]
        values = pixels.contiguous().numpy()
        frame = av.VideoFrame.from_ndarray(values[..., 0] if values.shape[-1] == 1 else values, format=decoded)
        return self._reformatter.reformat(frame, format=stored, threads=1)

    def _add_stream(self, frame: Tensor) -> VideoStream:
        stream = self._container.add_stream("ffv1", rate=self._rate)
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt = _STORED[frame.shape[-1], frame.dtype][1]
        return stream


def write_mp4(path: str | os.PathLike[str], frames: Tensor, fps: float, *, crf: int = 18) -> None:
    """Write uint8 frames `(T, H, W, 3)` to an MP4 that browsers play; see `Mp4Writer`."""
    with Mp4Writer(path, fps, crf=crf) as writer:
        writer.add(frames)


def gif_bytes(frames: Tensor, fps: float, *, num_colours: int = 256) -> bytes:
    """Encode uint8 frames `(T, H, W, 3)` as a looping GIF: a preview of up to 256 colours, timed in 1/100 s."""
    check_frames_of("frames", frames, (3,))
    first, *others = [Image.fromarray(frame.numpy()).quantize(num_colours) for frame in frames.cpu()]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=max(20, round(1000 / fps)), loop=0)
    return buffer.getvalue()


def shrink(frames: Tensor, max_side: int) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)`, resized if a side has more than `max_side` pixels."""
    scale = max_side / max(frames.shape[1:3])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    small = F.interpolate(frames.movedim(-1, 1).float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def check_frames_of(
    name: str, frames: Tensor, channels: Collection[int], dtypes: Sequence[torch.dtype] = (torch.uint8,)
) -> None:
    """Raise a `ValueError` unless `frames` are `(T, H, W, C)` of one of some `channels` and `dtypes`, not empty."""
    if frames.dtype not in dtypes or frames.ndim != 4 or frames.shape[-1] not in channels or 0 in frames.shape:
        kinds, numbers = (" or ".join(map(str, each)).replace("torch.", "") for each in (dtypes, channels))
        remedy = "Convert video with `telecine.data.bytes_from_video`."
        raise argument_error(name, f"{kinds} of shape (T, H, W, {numbers}), not empty", frames, remedy)


def as_shown(frames: Tensor) -> Tensor:
    """Return frames `(T, H, W, C)`, grey, RGB or RGBA, as uint8 RGB: grey repeated, RGBA on a grey chequerboard."""
    if frames.dtype == torch.uint16:
        frames = (frames.float() / 257).round_().to(torch.uint8)
    if frames.shape[-1] == 1:
        return frames.expand(-1, -1, -1, 3)
    if frames.shape[-1] != RGBA:
        return frames
    rows, columns = (torch.arange(size, device=frames.device) // _SQUARE for size in frames.shape[1:3])
    is_light = ((rows[:, None] + columns) % 2 == 0)[..., None]
    colours, alpha = frames.float().split([3, 1], dim=-1)
    board = torch.where(is_light, *_BOARD)
    return (board + alpha / 255 * (colours - board)).round_().to(torch.uint8)


def pad_to_even(frames: Tensor) -> Tensor:
    """Repeat the last row and column of `(T, H, W, 3)` where their number is odd."""
    for dim in (1, 2):
        if (size := frames.shape[dim]) % 2:
            frames = torch.cat([frames, frames.narrow(dim, size - 1, 1)], dim)
    return frames
