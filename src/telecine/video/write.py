"""Encoding of videos, as MP4 and lossless MKV, and of images, as PNG."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import torch
from av.container import OutputContainer
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    VideoReformatter,
)
from av.video.stream import VideoStream
from PIL import Image
from torch import Tensor

from telecine.base.checks import argument_error, check_positive
from telecine.base.files import atomic_write
from telecine.data.hdr import BT2020, HLG, PQ
from telecine.data.source import AnyPath
from telecine.video.frames import pad_to_even
from telecine.video.sound import CopiedSound, copied_sound

_RGB = 3
# Numbers of ITU-T H.273. Browsers guess the colour space of files without one, by the size of the frames.
_BT709 = 1
_LIMITED_RANGE = 1
_TRANSFERS = {PQ: ColorTrc.SMPTE2084, HLG: ColorTrc.ARIB_STD_B67, BT2020: ColorTrc.BT2020_10}
_FORMATS = {
    (1, torch.uint8): "gray",
    (1, torch.uint16): "gray16le",
    (3, torch.uint8): "rgb24",
    (3, torch.uint16): "rgb48le",
    (4, torch.uint8): "rgba",
    (4, torch.uint16): "rgba64le",
}
"""FFmpeg's formats of arrays by channels and type."""
_FFV1_FORMATS = {
    "rgb24": "bgr0",
    "rgba": "bgra",
    "rgb48le": "gbrp16le",
    "rgba64le": "gbrap16le",
}
"""The formats of FFV1, where they differ."""
_MAX_INT = 2**31 - 1  # FFmpeg's fractions have 32 bits


def write_image(path: Path, frame: Tensor) -> None:
    """Write a frame, uint8 `(H, W, C)` on the CPU of 1, 3 or 4 channels, as a PNG, atomically."""
    image = Image.fromarray(frame.squeeze(-1).numpy())
    atomic_write(path, lambda partial: image.save(partial, format="PNG"))


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Tensor],
    fps: float,
    *,
    crf: int = 18,
    preset: str = "medium",
    keyframe_every: int | None = None,
    num_times: int = 1,
    pts: Sequence[int] | None = None,
    time_base: float | None = None,
    sample_aspect_ratio: float = 1.0,
    sound: AnyPath | None = None,
    sound_start: float = 0.0,
    hdr: str = "",
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
        preset: x264's trade of time against size, from "ultrafast" to "veryslow".
        keyframe_every: Distance of keyframes, at which decoding can start; two seconds by default. If set, no frame
            depends on a later one.
        num_times: How often the file has all frames, one time after the other. They are encoded once, and then kept in
            memory. Only without `pts`.
        pts: When each frame is displayed, in units of `time_base`, from 0; a multiple of `1 / fps` by default.
        time_base: The unit of `pts` in seconds.
        sample_aspect_ratio: Of an MP4, width of a pixel divided by its height when the file is displayed.
        sound: A file whose sound is copied, see `CopiedSound`.
        sound_start: When the first frame is shown in that file, in seconds.
        hdr: The dynamic range and colours of the frames, "PQ", "HLG" or "BT.2020", which the file then says, see
            `telecine.data.hdr`; by default those of ordinary video, BT.709.

    Raises:
        ValueError: There is no frame, or one is of a kind or size that the file cannot have, or `fps` is not positive.
    """
    check_positive("fps", fps, remedy="Use 25 if it is unknown.")
    path = Path(path)
    is_lossless = path.suffix.lower() == ".mkv"
    rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))  # exact for 30000/1001
    unit = 1 / rate if time_base is None else Fraction(time_base)
    unit = unit.limit_denominator(_MAX_INT)
    checked = _checked(frames, is_lossless)
    first = next(checked, None)
    if first is None:
        raise argument_error("frames", "at least one frame", f"none for {path}", "Add some.")

    def write(partial: Path) -> None:
        container_format = "mp4"
        options = {
            "movflags": "+faststart"
        }  # the index comes first, so that browsers play the file while it loads
        if is_lossless:
            container_format = "matroska"
            options = {}
        with ExitStack() as stack:
            container = stack.enter_context(
                av.open(str(partial), "w", format=container_format, options=options)
            )
            stream = container.add_stream("ffv1" if is_lossless else "libx264", rate=rate)
            if is_lossless:
                _set_lossless_format(stream, first, hdr)
            else:
                _set_h264_format(stream, first, keyframe_every, hdr)
                stream.options = {"crf": str(crf), "preset": preset}
            stream.codec_context.time_base = unit
            stream.codec_context.sample_aspect_ratio = Fraction(
                sample_aspect_ratio
            ).limit_denominator(255)
            copy: CopiedSound | None = None
            if sound is not None:
                copy = stack.enter_context(copied_sound(sound, container, sound_start))
            reformatter = VideoReformatter()
            num_frames = 0
            repeated: list[av.Packet] = []
            for number, frame in enumerate(chain([first], checked)):
                encodable = _encodable(frame, reformatter, is_lossless)
                encodable.pts = number if pts is None else pts[number]
                encodable.time_base = unit
                packets = stream.encode(encodable)
                container.mux(packets)
                if num_times > 1:
                    repeated.extend(packets)
                num_frames += 1
                if copy is not None:
                    copy.copy_until(float(encodable.pts * unit))
            last_packets = stream.encode()
            container.mux(last_packets)
            if num_times > 1:
                repeated.extend(last_packets)
                _repeat(repeated, container, num_frames * unit, num_times - 1)

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, write)


def _repeat(
    packets: Sequence[av.Packet], container: OutputContainer, seconds: Fraction, num_times: int
) -> None:
    """Write packets again.

    Args:
        packets: All packets of a stream, in the order in which they were written. Their times are changed.
        container: Where they were written.
        seconds: Their duration.
        num_times: How often.
    """
    for _ in range(num_times):
        for packet in packets:
            assert packet.pts is not None
            assert packet.dts is not None
            duration = round(seconds / packet.time_base)
            packet.pts += duration
            packet.dts += duration
            container.mux(packet)


def _checked(frames: Iterable[Tensor], is_lossless: bool) -> Iterator[Tensor]:
    """Yield frames; raise a `ValueError` for one that the file cannot have, or of another size than the first."""
    size = None
    for frame in frames:
        if is_lossless:
            kind = "uint8 or uint16 of shape (T, H, W, 1 or 3 or 4)"
            is_valid = frame.ndim == 3 and (frame.shape[-1], frame.dtype) in _FORMATS
        else:
            kind = "uint8 of shape (T, H, W, 3)"
            is_valid = frame.ndim == 3 and frame.shape[-1] == _RGB and frame.dtype == torch.uint8
        if not is_valid or 0 in frame.shape:
            remedy = "Convert video with `telecine.data.bytes_from_video`."
            raise argument_error("frames", f"{kind}, not empty", frame[None], remedy)
        if size is None:
            size = frame.shape[:2]
        if frame.shape[:2] != size:
            contract = f"of height and width {tuple(size)}, as before"
            raise argument_error("frames", contract, frame, "Resize them.")
        yield frame


def _set_lossless_format(stream: VideoStream, frame: Tensor, hdr: str) -> None:
    array_format = _array_format(frame)
    stream.height, stream.width = frame.shape[:2]
    stream.pix_fmt = _FFV1_FORMATS.get(array_format, array_format)
    if hdr:
        stream.codec_context.color_primaries = ColorPrimaries.BT2020
        stream.codec_context.color_trc = _TRANSFERS[hdr]


def _set_h264_format(
    stream: VideoStream, frame: Tensor, keyframe_every: int | None, hdr: str
) -> None:
    height, width = frame.shape[:2]
    stream.height = height + height % 2
    stream.width = width + width % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.gop_size = keyframe_every or max(1, round(2 * context.framerate))
    if keyframe_every is not None:
        context.max_b_frames = 0
    context.colorspace = _BT709
    context.color_range = _LIMITED_RANGE
    context.color_primaries = ColorPrimaries.BT2020 if hdr else _BT709
    context.color_trc = _TRANSFERS.get(hdr, _BT709)


def _encodable(frame: Tensor, reformatter: VideoReformatter, is_lossless: bool) -> av.VideoFrame:
    """Return a frame `(H, W, C)` in the format of the file."""
    array_format = _array_format(frame)
    pixels = frame.cpu()
    if not is_lossless:
        pixels = pad_to_even(pixels[None])[0]
    array = av.VideoFrame.from_ndarray(pixels.squeeze(-1).contiguous().numpy(), format=array_format)
    if is_lossless:
        return reformatter.reformat(
            array, format=_FFV1_FORMATS.get(array_format, array_format), threads=1
        )
    return reformatter.reformat(
        array,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )


def _array_format(frame: Tensor) -> str:
    return _FORMATS[frame.shape[-1], frame.dtype]
