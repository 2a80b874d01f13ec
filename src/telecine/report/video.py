"""Encoding of videos: MP4 and GIF."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_positive
from telecine.base.files import partial_path

# Numbers of ITU-T H.273. Browsers guess the colour space of files without one, by the size of the frames.
_BT709 = _LIMITED_RANGE = 1
_MAX_INT = 2**31 - 1  # FFmpeg's fractions have 32 bits


class Mp4Writer:
    """Writes frames to an H.264 MP4 that browsers play, in constant memory.

    The file appears when the `with` block ends, or not at all if it fails. The last row or column of frames of odd size
    is repeated, because the format stores colours at half the resolution.

    Args:
        path: The file. Its folder is created if needed.
        fps: Frames per second.
        crf: Quality, from 0 (lossless) to 51; 18 is visually lossless.
        keyframe_every: Distance of keyframes, at which decoding can start; two seconds by default. If set, no frame
            depends on a later one.
        pts: When each frame is displayed, in units of `time_base`, from 0; a multiple of `1 / fps` by default.
        time_base: The unit of `pts` in seconds.
        sample_aspect_ratio: Width of a pixel divided by its height when the file is displayed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        *,
        crf: int = 18,
        keyframe_every: int | None = None,
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
        self._crf = crf
        self._keyframe_every = keyframe_every
        self._size = (0, 0)
        self._stream: VideoStream | None = None
        self._reformatter = VideoReformatter()
        self._num_frames = 0

    def __enter__(self) -> Mp4Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = partial_path(self.path)
        # Put the index first, so that browsers play the file while it loads.
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        return self

    def add(self, frames: Tensor) -> None:
        """Append uint8 frames `(T, H, W, 3)`, all of one size."""
        check_rgb_frames("frames", frames)
        size = (frames.shape[1], frames.shape[2])
        if self._stream is None:
            self._size = size
            self._stream = self._add_stream(*size)
        if size != self._size:
            raise argument_error("frames", f"of height and width {self._size}, as before", frames, "Resize them.")
        for frame in pad_to_even(frames.cpu()):
            self._container.mux(self._stream.encode(self._yuv_frame(frame)))

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

    def _yuv_frame(self, frame: Tensor) -> av.VideoFrame:
        # One thread and a time on every frame make the files of equal frames equal, except rarely under heavy load.
        rgb = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
        yuv = self._reformatter.reformat(
            rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
        )
        yuv.pts = self._num_frames if self._pts is None else self._pts[self._num_frames]
        yuv.time_base = self._time_base
        self._num_frames += 1
        return yuv

    def _add_stream(self, height: int, width: int) -> VideoStream:
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(self._crf)}
        context = stream.codec_context
        context.time_base = self._time_base
        context.sample_aspect_ratio = self._aspect
        context.gop_size = self._keyframe_every or max(1, round(2 * self._rate))
        if self._keyframe_every is not None:
            context.max_b_frames = 0
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        return stream


def write_mp4(
    path: str | os.PathLike[str], frames: Tensor, fps: float, *, crf: int = 18, keyframe_every: int | None = None
) -> None:
    """Write uint8 frames `(T, H, W, 3)` to an MP4 that browsers play; see `Mp4Writer`."""
    with Mp4Writer(path, fps, crf=crf, keyframe_every=keyframe_every) as writer:
        writer.add(frames)


def gif_bytes(frames: Tensor, fps: float, *, num_colours: int = 256) -> bytes:
    """Encode uint8 frames `(T, H, W, 3)` as a looping GIF: a preview of up to 256 colours, timed in 1/100 s."""
    check_rgb_frames("frames", frames)
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


def check_rgb_frames(name: str, frames: Tensor) -> None:
    """Raise a `ValueError` if `frames` are not uint8 of shape `(T, H, W, 3)`, or empty."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        remedy = "Convert video with `telecine.data.bytes_from_video`."
        raise argument_error(name, "uint8 of shape (T, H, W, 3), not empty", frames, remedy)


def pad_to_even(frames: Tensor) -> Tensor:
    """Repeat the last row and column of `(T, H, W, 3)` where their number is odd."""
    for dim in (1, 2):
        if (size := frames.shape[dim]) % 2:
            frames = torch.cat([frames, frames.narrow(dim, size - 1, 1)], dim)
    return frames
