"""Encoding of videos: MP4, lossless MKV and GIF; and frames as they are shown."""

import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_positive
from telecine.base.files import atomic_write
from telecine.base.shapes import RGBA

# Numbers of ITU-T H.273. Browsers guess the colour space of files without one, by the size of the frames.
_BT709 = _LIMITED_RANGE = 1
# Formats of arrays by channels, of 8 and of 16 bits; and FFV1's, where they differ.
_FORMATS = {1: ("gray", "gray16le"), 3: ("rgb24", "rgb48le"), 4: ("rgba", "rgba64le")}
_STORED = {"rgb24": "bgr0", "rgba": "bgra", "rgb48le": "gbrp16le", "rgba64le": "gbrap16le"}
# A side of a video that x264 writes, and of one of three pictures beside each other, with gaps.
MAX_VIDEO_SIDE, MAX_PANE = 16384, 5456
# The side of a square of the chequerboard behind transparent pixels, and its two greys.
_SQUARE, _BOARD = 8, (204.0, 153.0)
_MP4_PIXELS = {"format": "yuv420p", "dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
_MAX_INT = 2**31 - 1  # FFmpeg's fractions have 32 bits


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Tensor],
    fps: float,
    *,
    crf: int = 18,
    keyframe_every: int | None = None,
    pts: Sequence[int] | None = None,
    time_base: float | None = None,
    sample_aspect_ratio: float = 1.0,
) -> None:
    """Write frames to an H.264 MP4 that browsers play, or without loss to an MKV (FFV1), in constant memory.

    An MP4 has RGB of 8 bits; an MKV also grey, RGBA and 16 bits, and times rounded to milliseconds. The file appears
    when it is complete. The last row or column of an MP4 of odd size is repeated, because it stores colours at half the
    resolution. MP4s of the same frames can differ on a CPU with AVX-512: x264's `mbtree` reads memory that is not set.

    Args:
        path: The file, an `.mkv` or an MP4. Its folder is created if needed.
        frames: A tensor `(T, H, W, C)`, or frames `(H, W, C)` one by one; uint8 or uint16, all of one kind and size.
        fps: Frames per second.
        crf: Quality of an MP4, from 0 (lossless) to 51; 18 is visually lossless.
        keyframe_every: Distance of keyframes, at which decoding can start; two seconds by default. If set, no frame
            depends on a later one.
        pts: When each frame is displayed, in units of `time_base`, from 0; a multiple of `1 / fps` by default.
        time_base: The unit of `pts` in seconds.
        sample_aspect_ratio: Of an MP4, width of a pixel divided by its height when the file is displayed.
    """
    check_positive("fps", fps, remedy="Use 25 if it is unknown.")
    path = Path(path)
    is_lossless = path.suffix.lower() == ".mkv"
    frames = _checked(frames, is_lossless)
    rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))  # exact for 30000/1001
    unit = (1 / rate if time_base is None else Fraction(time_base)).limit_denominator(_MAX_INT)
    if (first := next(frames, None)) is None:
        raise argument_error("frames", "at least one frame", f"none for {path}", "Add some.")

    def write(partial: Path) -> None:
        # Put the index of an MP4 first, so that browsers play the file while it loads.
        kind, options = ("matroska", {}) if is_lossless else ("mp4", {"movflags": "+faststart"})
        with av.open(str(partial), "w", format=kind, options=options) as container:
            stream = container.add_stream("ffv1" if is_lossless else "libx264", rate=rate)
            _set_format(stream, first, None if is_lossless else crf, keyframe_every)
            stream.codec_context.time_base = unit
            stream.codec_context.sample_aspect_ratio = Fraction(sample_aspect_ratio).limit_denominator(255)
            for number, frame in enumerate(_encodable(chain([first], frames), is_lossless)):
                frame.pts, frame.time_base = number if pts is None else pts[number], unit
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, write)


def _checked(frames: Iterable[Tensor], is_lossless: bool) -> Iterator[Tensor]:
    """Yield frames; raise a `ValueError` for one that the file cannot have, or of another size than the first."""
    types, channels = ([torch.uint8, torch.uint16], [*_FORMATS]) if is_lossless else ([torch.uint8], [3])
    size = None
    for frame in frames:
        if frame.dtype not in types or frame.ndim != 3 or frame.shape[-1] not in channels or 0 in frame.shape:
            kind = "uint8 or uint16 of shape (T, H, W, 1 or 3 or 4)" if is_lossless else "uint8 of shape (T, H, W, 3)"
            remedy = "Convert video with `telecine.data.bytes_from_video`."
            raise argument_error("frames", f"{kind}, not empty", frame[None], remedy)
        size = size or frame.shape[:2]
        if frame.shape[:2] != size:
            raise argument_error("frames", f"of height and width {(*size,)}, as before", frame, "Resize them.")
        yield frame


def _set_format(stream: VideoStream, frame: Tensor, crf: int | None, keyframe_every: int | None) -> None:
    context, (height, width) = stream.codec_context, frame.shape[:2]
    if crf is None:
        stream.height, stream.width, stream.pix_fmt = height, width, _STORED.get(name := _name_of(frame), name)
        return
    stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    stream.options = {"crf": str(crf)}
    context.gop_size = keyframe_every or max(1, round(2 * context.framerate))
    if keyframe_every is not None:
        context.max_b_frames = 0
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE


def _encodable(frames: Iterable[Tensor], is_lossless: bool) -> Iterator[av.VideoFrame]:
    reformatter = VideoReformatter()
    for frame in frames:
        name, values = _name_of(frame), frame.cpu() if is_lossless else pad_to_even(frame[None].cpu())[0]
        pixels = av.VideoFrame.from_ndarray(values.squeeze(-1).contiguous().numpy(), format=name)
        target = {"format": _STORED.get(name, name)} if is_lossless else _MP4_PIXELS
        yield reformatter.reformat(pixels, **target, threads=1)


def _name_of(frames: Tensor) -> str:
    return _FORMATS[frames.shape[-1]][frames.dtype == torch.uint16]


def shrink(frames: Tensor, max_side: int) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)`, resized if a side has more than `max_side` pixels."""
    scale = max_side / max(frames.shape[1:3])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    small = F.interpolate(frames.movedim(-1, 1).float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def depth_range(frames: Tensor) -> tuple[int, int] | None:
    """Return the least and the largest value of frames that `as_shown` shows in colours; None for others."""
    if frames.dtype != torch.uint16 or frames.shape[-1] != 1:
        return None
    return int(frames.int().min()), int(frames.int().max())


def as_shown(frames: Tensor, limits: tuple[int, int] | None = None) -> Tensor:
    """Return frames `(T, H, W, C)` as uint8 RGB `(T, H', W', 3)`.

    Grey is repeated, RGBA composited on a grey chequerboard, and other numbers of channels are grey side by side, in
    rows of up to `MAX_PANE` pixels. With `limits`, grey between them has the colours of "turbo", from blue to red.
    """
    if limits is not None:
        from matplotlib import colormaps  # takes time that other frames must not spend

        colours = torch.from_numpy(colormaps["turbo"](range(256), bytes=True)[:, :3].copy())
        low, high = limits
        return colours[((frames[..., 0].float() - low) * 255 / max(high - low, 1)).round_().clamp_(0, 255).int()]
    if frames.dtype == torch.uint16:
        frames = (frames.float() / 257).round_().to(torch.uint8)
    if frames.shape[-1] not in _FORMATS:
        in_a_row = min(frames.shape[-1], max(1, MAX_PANE // frames.shape[2]))
        filled = F.pad(frames, (0, -frames.shape[-1] % in_a_row))
        frames = rearrange(filled, "t h w (rows n) -> t (rows h) (n w) 1", n=in_a_row)
    if frames.shape[-1] != RGBA:
        return frames.expand(-1, -1, -1, 3)
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
