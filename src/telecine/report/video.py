"""Videos that a person looks at: MP4 files, side-by-side comparisons, GIF previews."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import av
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from telecine.shapes import argument_error

# BT.709 in H.273's numbering, written into the file: without, players guess, by the size of the picture.
_BT709 = 1
_LIMITED_RANGE = 1

MIN_PANEL_HEIGHT = 192
_BAR_HEIGHT = 26
_GAP = 4
_LABELS = ("input", "reconstruction")


class Mp4Writer:
    """Writes frames to an H.264 MP4 that browsers play, as they come, in constant memory.

    The file appears under its name when the `with` block ends; if it fails, nothing does. Odd sizes get their last
    row or column repeated, since the format halves the resolution of colours.

    Args:
        path: the file; its folder is made if need be.
        fps: frames a second.
        crf: quality, from 0 (lossless) to 51; 18 shows no loss to the eye.
        keyframe_every: distance of frames at which decoding can begin, two seconds by default. A small number makes
            every frame quick to reach, for which no frame then needs a later one, and the file larger.
    """

    def __init__(
        self, path: str | os.PathLike[str], fps: float, *, crf: int = 18, keyframe_every: int | None = None
    ) -> None:
        if not fps > 0:
            raise argument_error("fps", "above 0", fps, "Use 25 if nothing is known.")
        if not 0 <= crf <= 51:
            raise argument_error("crf", "from 0 to 51", crf, "Use 18; smaller is better and larger.")
        if keyframe_every is not None and keyframe_every < 1:
            raise argument_error("keyframe_every", "at least 1", keyframe_every, "Leave it out for the default.")
        self.path = Path(path)
        # Fine enough for 30000/1001.
        self._rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        self._crf = crf
        self._keyframe_every = keyframe_every
        self._size: tuple[int, int] | None = None
        self._stream: Any = None
        self._reformatter = VideoReformatter()
        self._num_frames = 0

    def __enter__(self) -> Mp4Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        # The index goes in front, so that a browser plays while it loads.
        options = {"movflags": "+faststart"}
        self._container = av.open(str(self._partial), "w", format="mp4", options=options)
        return self

    def add(self, frames: Tensor) -> None:
        """Append uint8 frames `(T, H, W, 3)`, all of one size."""
        _check_frames("frames", frames)
        size = (frames.shape[1], frames.shape[2])
        if self._stream is None:
            self._size = size
            self._stream = self._add_stream(*size)
        if size != self._size:
            raise argument_error("frames", f"of height and width {self._size}, as before", frames, "Resize them.")
        for frame in _even(frames.cpu()):
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

    def _yuv_frame(self, frame: Tensor) -> Any:
        # One thread, and a time on every frame: without the two, one file in 200 came out different under load.
        rgb = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
        yuv = self._reformatter.reformat(
            rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
        )
        yuv.pts, yuv.time_base = self._num_frames, 1 / self._rate
        self._num_frames += 1
        return yuv

    def _add_stream(self, height: int, width: int) -> Any:
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(self._crf)}
        context = stream.codec_context
        context.gop_size = self._keyframe_every or max(1, round(2 * self._rate))
        if self._keyframe_every is not None:
            context.max_b_frames = 0
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        return stream


def write_mp4(path: str | os.PathLike[str], frames: Tensor, fps: float, *, crf: int = 18) -> None:
    """Write uint8 frames `(T, H, W, 3)` to an MP4 that browsers play; see `Mp4Writer`."""
    with Mp4Writer(path, fps, crf=crf) as writer:
        writer.add(frames)


def side_by_side(
    *, inputs: Sequence[Tensor] | Tensor, reconstructions: Sequence[Tensor] | Tensor, amplification: float = 4.0
) -> Tensor:
    """Lay out input, reconstruction and their amplified absolute difference from left to right, a row a clip.

    Args:
        inputs: clips of uint8 frames `(T, H, W, 3)`, all of one shape.
        reconstructions: as many, of the same shape.
        amplification: what the difference is multiplied with before it is cut off at white.

    Returns:
        uint8 frames `(T, H', W', 3)` with even `H'` and `W'`. Small clips are enlarged by a whole factor, each
        pixel a square, until a panel is at least 192 pixels high.
    """
    _check_pairs(inputs, reconstructions)
    rows = []
    for clip, recon in zip(inputs, reconstructions, strict=True):
        panels = (clip.cpu(), recon.cpu(), amplified_difference(clip.cpu(), recon.cpu(), amplification))
        rows.append(_join([_enlarged(panel) for panel in panels], dim=2))
    picture = _join(rows, dim=1)
    labels = (*_LABELS, f"difference x {amplification:g}")
    bar = _label_bar(labels, picture.shape[2], (picture.shape[2] + _GAP) / len(labels))
    return _even(torch.cat([bar.expand(picture.shape[0], -1, -1, -1), picture], dim=1))


def amplified_difference(clip: Tensor, recon: Tensor, amplification: float) -> Tensor:
    """Return the absolute difference of uint8 frames times `amplification`, cut off at white."""
    difference = (clip.float() - recon.float()).abs().mul(amplification)
    return difference.clamp(max=255.0).round().to(torch.uint8)


def panes(*, target: Tensor, reconstruction: Tensor, amplification: float = 4.0) -> Tensor:
    """Lay out the frames of input, reconstruction and amplified difference from left to right, nothing between them.

    Made to be cut apart again: a third of the width belongs to each. No label, no gap; clips lower than 192 pixels are
    doubled, so that the format's halved resolution of colours is the clip's own.

    Args:
        target: uint8 frames `(T, H, W, 3)`.
        reconstruction: of the same shape.
        amplification: what the difference is multiplied with before it is cut off at white.

    Returns:
        uint8 frames `(T, H', 3 * W', 3)` with even `H'` and `W'`.
    """
    _check_pairs([target], [reconstruction])
    target, reconstruction = target.cpu(), reconstruction.cpu()
    difference = amplified_difference(target, reconstruction, amplification)
    factor = 2 if target.shape[1] < MIN_PANEL_HEIGHT else 1
    return torch.cat([_even(_repeated(pane, factor)) for pane in (target, reconstruction, difference)], dim=2)


def mp4_bytes(frames: Tensor, fps: float) -> bytes:
    """Encode uint8 frames `(T, H, W, 3)` as an MP4 that browsers play."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(path, frames, fps)
        return path.read_bytes()


def gif_bytes(frames: Tensor, fps: float) -> bytes:
    """Encode uint8 frames `(T, H, W, 3)` as an animated GIF that repeats, as TensorBoard shows it.

    GIF has 256 colours a frame and counts time in hundredths of a second: a preview, not a measurement.
    """
    _check_frames("frames", frames)
    images = [Image.fromarray(frame.numpy()).quantize(256) for frame in frames.cpu()]
    buffer = io.BytesIO()
    milliseconds = max(20, round(1000 / fps))
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def _check_frames(name: str, frames: Tensor) -> None:
    right = isinstance(frames, Tensor) and frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
    if not right or 0 in frames.shape:
        remedy = "Convert video with `telecine.data.bytes_from_video`."
        raise argument_error(name, "uint8 of shape (T, H, W, 3), not empty", frames, remedy)


def _check_pairs(inputs: Sequence[Tensor] | Tensor, reconstructions: Sequence[Tensor] | Tensor) -> None:
    if len(inputs) == 0 or len(inputs) != len(reconstructions):
        got = f"{len(inputs)} inputs and {len(reconstructions)} reconstructions"
        raise argument_error("reconstructions", "one for each input, at least one", got, "Pass pairs of clips.")
    for clip in (*inputs, *reconstructions):
        _check_frames("inputs` and `reconstructions", clip)
        if clip.shape != inputs[0].shape:
            contract = f"all of shape {tuple(inputs[0].shape)}"
            raise argument_error("inputs` and `reconstructions", contract, clip, "Crop or resize the clips.")


def _even(frames: Tensor) -> Tensor:
    """Repeat the last row and column of `(T, H, W, 3)` where their number is odd."""
    height, width = frames.shape[1:3]
    if height % 2:
        frames = torch.cat([frames, frames[:, -1:]], dim=1)
    if width % 2:
        frames = torch.cat([frames, frames[:, :, -1:]], dim=2)
    return frames


def _enlarged(frames: Tensor) -> Tensor:
    return _repeated(frames, -(-MIN_PANEL_HEIGHT // frames.shape[1]))


def _repeated(frames: Tensor, factor: int) -> Tensor:
    """Make a square of each pixel of `(T, H, W, 3)`."""
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _join(panels: Sequence[Tensor], dim: int) -> Tensor:
    """Put `(T, H, W, 3)` panels in a line along `dim`, a dark gap between them."""
    shape = list(panels[0].shape)
    shape[dim] = _GAP
    gap = torch.zeros(shape, dtype=torch.uint8)
    parts = [part for panel in panels for part in (gap, panel)]
    return torch.cat(parts[1:], dim=dim)


def _label_bar(labels: Sequence[str], width: int, pitch: float) -> Tensor:
    """Draw each label at the left edge of its panel on a dark bar, uint8 `(1, height, width, 3)`."""
    image = Image.new("RGB", (width, _BAR_HEIGHT))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=15)
    for i, label in enumerate(labels):
        draw.text((round(i * pitch) + 4, _BAR_HEIGHT / 2), label, fill=(235, 235, 235), font=font, anchor="lm")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, _BAR_HEIGHT, width, 3)
