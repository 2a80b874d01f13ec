"""Encoding of videos (MP4, GIF), and layouts of input, reconstruction and difference."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import av
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_count
from telecine.base.files import partial_path

# BT.709 as numbered in H.273. Players guess the colour space of files that do not state it, by the frame size.
_BT709 = 1
_LIMITED_RANGE = 1
# FFmpeg's fractions have 32 bits.
_MAX_INT = 2**31 - 1

# A clip lasts a third of a second or so, too short to look at. Displays show 60 frames a second.
MIN_SECONDS, MAX_PREVIEW_FPS = 4.0, 60.0
MIN_PANEL_HEIGHT = 192
_LABEL_HEIGHT = 26
_GAP = 4
_LABELS = ("input", "reconstruction")


class Mp4Writer:
    """Writes frames to an H.264 MP4 that browsers play, in constant memory.

    The file appears when the `with` block ends, or not at all if it fails. The last row or column of frames of odd size
    is repeated, because the format stores colours at half the resolution.

    Args:
        path: The file. Its folder is created if needed.
        fps: Frames per second.
        crf: Quality, from 0 (lossless) to 51; 18 is visually lossless.
        keyframe_every: Distance of keyframes, at which decoding can start; two seconds by default. If set, no frame
            depends on a later one. Small values make seeking fast and the file large.
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
        if not fps > 0:
            raise argument_error("fps", "above 0", fps, "Use 25 if it is unknown.")
        if not 0 <= crf <= 51:
            raise argument_error("crf", "from 0 to 51", crf, "Use 18; smaller is better and larger.")
        if keyframe_every is not None:
            check_count("keyframe_every", keyframe_every, remedy="Leave it out for the default.")
        self.path = Path(path)
        # Exact for 30000/1001.
        self._rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
        self._time_base = 1 / self._rate if time_base is None else Fraction(time_base).limit_denominator(_MAX_INT)
        self._pts = pts
        self._aspect = Fraction(sample_aspect_ratio).limit_denominator(255)
        self._crf = crf
        self._keyframe_every = keyframe_every
        self._size: tuple[int, int] | None = None
        self._stream: VideoStream | None = None
        self._reformatter = VideoReformatter()
        self._num_frames = 0

    def __enter__(self) -> Mp4Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = partial_path(self.path)
        # Put the index first, so that browsers play the file while it loads.
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
        for frame in _pad_to_even(frames.cpu()):
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
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(self._crf)}
        context = stream.codec_context
        context.time_base = self._time_base
        context.sample_aspect_ratio = self._aspect
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


def write_preview(path: str | os.PathLike[str], frames: Tensor, fps: float) -> None:
    """Write a short clip as an MP4 to look at: it is repeated until it lasts at least `MIN_SECONDS`.

    A clip of more than `MAX_PREVIEW_FPS` frames a second is slowed down.
    """
    fps = min(fps, MAX_PREVIEW_FPS)
    with Mp4Writer(path, fps) as writer:
        for _ in range(max(1, math.ceil(MIN_SECONDS * fps / len(frames)))):
            writer.add(frames)


def mp4_bytes(frames: Tensor, fps: float) -> bytes:
    """Encode uint8 frames `(T, H, W, 3)` as an MP4 that browsers play."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(path, frames, fps)
        return path.read_bytes()


def gif_bytes(frames: Tensor, fps: float, *, num_colours: int = 256) -> bytes:
    """Encode uint8 frames `(T, H, W, 3)` as a looping GIF, as TensorBoard shows it.

    For previews only: a GIF has up to 256 colours per frame, and times in hundredths of a second.
    """
    _check_frames("frames", frames)
    images = [Image.fromarray(frame.numpy()).quantize(num_colours) for frame in frames.cpu()]
    buffer = io.BytesIO()
    milliseconds = max(20, round(1000 / fps))
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def shrink(frames: Tensor, max_side: int) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)`, resized if a side has more than `max_side` pixels."""
    scale = max_side / max(frames.shape[1:3])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    small = F.interpolate(frames.movedim(-1, 1).float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def side_by_side(
    *, inputs: Sequence[Tensor] | Tensor, reconstructions: Sequence[Tensor] | Tensor, amplification: float = 4.0
) -> Tensor:
    """Lay out input, reconstruction and amplified absolute difference from left to right, one row per clip.

    Args:
        inputs: Clips of uint8 frames `(T, H, W, 3)`, all of one shape.
        reconstructions: As many clips of the same shape.
        amplification: The factor of the difference, which is clamped at white.

    Returns:
        uint8 frames `(T, H', W', 3)` with labels. `H'` and `W'` are even. Small clips are enlarged by an integer factor
        (nearest neighbour) so that a panel has at least 192 rows.
    """
    _check_pairs(inputs, reconstructions)
    rows = []
    for clip, recon in zip(inputs, reconstructions, strict=True):
        panels = (clip.cpu(), recon.cpu(), amplified_difference(clip.cpu(), recon.cpu(), amplification))
        factor = -(-MIN_PANEL_HEIGHT // clip.shape[1])
        rows.append(_join([_enlarge(panel, factor) for panel in panels], dim=2))
    picture = _join(rows, dim=1)
    labels = (*_LABELS, f"difference x {amplification:g}")
    bar = _label_bar(labels, picture.shape[2], (picture.shape[2] + _GAP) / len(labels))
    return _pad_to_even(torch.cat([bar.expand(picture.shape[0], -1, -1, -1), picture], dim=1))


def panes(*, target: Tensor, reconstruction: Tensor, amplification: float = 4.0) -> Tensor:
    """Lay out the frames of input, reconstruction and amplified difference from left to right, without gaps or labels.

    A player can crop the panes: each is a third of the width. Clips lower than 192 pixels are enlarged by 2 (nearest
    neighbour), so that the format's half resolution of colours is the clip's full resolution.

    Args:
        target: uint8 frames `(T, H, W, 3)`.
        reconstruction: Of the same shape.
        amplification: The factor of the difference, which is clamped at white.

    Returns:
        uint8 frames `(T, H', 3 * W', 3)` with even `H'` and `W'`.
    """
    _check_pairs([target], [reconstruction])
    target, reconstruction = target.cpu(), reconstruction.cpu()
    difference = amplified_difference(target, reconstruction, amplification)
    factor = 2 if target.shape[1] < MIN_PANEL_HEIGHT else 1
    return torch.cat([_pad_to_even(_enlarge(pane, factor)) for pane in (target, reconstruction, difference)], dim=2)


def amplified_difference(clip: Tensor, recon: Tensor, amplification: float) -> Tensor:
    """Return the absolute difference of uint8 frames times `amplification`, clamped at white."""
    difference = (clip.float() - recon.float()).abs().mul(amplification)
    return difference.clamp(max=255.0).round().to(torch.uint8)


def _check_frames(name: str, frames: Tensor) -> None:
    is_valid = isinstance(frames, Tensor) and frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
    if not is_valid or 0 in frames.shape:
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


def _pad_to_even(frames: Tensor) -> Tensor:
    """Repeat the last row and column of `(T, H, W, 3)` where their number is odd."""
    height, width = frames.shape[1:3]
    if height % 2:
        frames = torch.cat([frames, frames[:, -1:]], dim=1)
    if width % 2:
        frames = torch.cat([frames, frames[:, :, -1:]], dim=2)
    return frames


def _enlarge(frames: Tensor, factor: int) -> Tensor:
    """Enlarge `(T, H, W, 3)` by an integer factor (nearest neighbour)."""
    return frames.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _join(panels: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate `(T, H, W, 3)` panels along `dim` with black gaps."""
    shape = list(panels[0].shape)
    shape[dim] = _GAP
    gap = torch.zeros(shape, dtype=torch.uint8)
    parts = [part for panel in panels for part in (gap, panel)]
    return torch.cat(parts[1:], dim=dim)


def _label_bar(labels: Sequence[str], width: int, pitch: float) -> Tensor:
    """Draw each label at the left edge of its panel on a black bar, uint8 `(1, height, width, 3)`."""
    image = Image.new("RGB", (width, _LABEL_HEIGHT))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=15)
    for i, label in enumerate(labels):
        draw.text((round(i * pitch) + 4, _LABEL_HEIGHT / 2), label, fill=(235, 235, 235), font=font, anchor="lm")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, _LABEL_HEIGHT, width, 3)
