"""Exact decoding of the frames of videos, and of still images, which are clips of one frame."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from fractions import Fraction
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.buffer import Buffer
from av.codec import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from telecine.base.checks import argument_error, check_count
from telecine.base.yaml_files import read_package_yaml
from telecine.data.arrays import read_array
from telecine.data.errors import Deadline, DecodeError, decode_errors
from telecine.data.remote import open_local
from telecine.data.source import Source, TarMember, VideoInfo, as_source, content_of, open_file
from telecine.settings import CHANNELS, MAX_PIXELS, RGB, PixelFormat

FORMATS: dict[str, Any] = read_package_yaml(__package__, "formats.yaml")

# swscale's bicubic filter widens when it shrinks, so it does not alias, and it is the closest of swscale's filters to
# the usual antialiased bicubic: 50 dB on a zone plate resized from 720p to 128, against 30 dB of `AREA` and 36 dB of
# bilinear. Without full chroma interpolation and accurate rounding, 4:2:0 and 4:2:2 come out up to 2 levels too dark.
# PyAV before 18 has no names for these two swscale flags, but accepts their values.
_FULL_CHROMA, _ACCURATE_ROUNDING = 1 << 13, 1 << 18
_INTERPOLATION = int(Interpolation.BICUBIC) | _FULL_CHROMA | _ACCURATE_ROUNDING
_LIMITED_WHITE, _WHITE = 65283, 65535  # of 16 bits: what swscale's RGB has for the white of limited range, and white
# Of this many frames after a clip, the decoder returns at least one, which tells that a frame is missing.
_MAX_SKIPPED = 32
_NUM_AT_ONCE = 16  # frames of an array that are read at once
_ANIMATED = "an animated image, which is not read; convert it to a video, e.g. `ffmpeg -i IN.gif OUT.mp4`"
# PyAV before 19 by default refuses files with metadata that is not UTF-8. PyAV 19 has no such option.
_OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_OPEN_OPTIONS["options"] = {"format_whitelist": ",".join(FORMATS["containers"] + FORMATS["animated_images"])}
VIDEO_ERRORS = (FFmpegError, OSError, ValueError)  # a `ValueError`: FFmpeg reads it, but PyAV does not know it
# Errors that Pillow raises for files that are damaged, truncated, of another format, or larger than its safety limit.
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_PNG_DEPTH = 24  # the position of its bit depth
_MAX_MEMBER_BYTES = 2**29  # of an image in a tar file, which is read whole before its header is parsed


@contextmanager
def open_video(
    path: str | PathLike[str] | Source, max_pixels: int = MAX_PIXELS, deadline: Deadline | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file or tar member for decoding on one thread, and yield its container and first stream of moving video.

    Raises:
        DecodeError: the file has no video that can be decoded, or FFmpeg or PyAV fails inside the `with` block.
        DataError: a file at an address has not arrived by the deadline.
    """
    with decode_errors(path, VIDEO_ERRORS), open_local(as_source(path), _open_container, deadline) as container:
        if container.format.name in FORMATS["animated_images"]:
            raise DecodeError(f"{path}: {_ANIMATED}")
        moving = (each for each in container.streams.video if not each.disposition & Disposition.attached_pic)
        stream = next(moving, None)
        if stream is None:
            raise DecodeError(f"{path}: has no video stream")
        if stream.codec_context is None:
            raise DecodeError(f"{path}: no decoder for its codec is available")
        stream.codec_context.thread_count = 1  # a worker hangs if it is forked while decoder threads are alive
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(max_pixels)}  # also for frames that grow within the stream
        yield container, stream


def _open_container(source: Path | TarMember) -> InputContainer:
    open_file(source).close()  # FFmpeg would wait for a FIFO
    url = f"file:{source}"  # without the protocol, FFmpeg takes the part of a name before a colon for one
    if isinstance(source, TarMember):
        url = f"subfile,,start,{source.offset},end,{source.offset + source.size},,:file:{source.archive}"
    try:
        return av.open(url, **_OPEN_OPTIONS)
    except av.error.ArgumentError as error:
        known = " ".join(FORMATS["containers"])
        raise DecodeError(f"{source}: not one of the formats that are read ({known}), or damaged") from error


def decoded_frames(
    packets: Iterable[Packet[VideoStream]], *, alpha: bool = False, needed: Container[int] | None = None
) -> Iterator[VideoFrame]:
    """Decode packets into frames in display order, with their `alpha` if it is asked for.

    Frames that are not at one of the `needed` timestamps, and that no other frame depends on, are skipped.
    """
    decoder: Any = None
    for packet in packets:
        own, metadata = packet.stream.codec_context, packet.stream.metadata
        if alpha and decoder is None and own.name in FORMATS["alpha_decoders"] and metadata.get("alpha_mode") == "1":
            decoder = CodecContext.create(FORMATS["alpha_decoders"][own.name], "r")
            decoder.thread_count, decoder.options = 1, own.options
        if needed is not None and own.name in FORMATS["reference_flags"]:
            own.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in needed else "NONREF"
        yield from packet.decode() if decoder is None else decoder.decode(packet if packet.size else None)


def _num_quarter_turns(frame: VideoFrame) -> int:
    return round(frame.rotation / 90) % 4


def _is_mirrored(frame: VideoFrame) -> bool:
    """Return whether a frame is flipped upside down for display, before it is rotated."""
    with suppress(ValueError):  # PyAV reads no side data of a frame if a type has no name in PyAV, such as EXIF
        if isinstance(matrix := frame.side_data.get("DISPLAYMATRIX"), Buffer):
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
            return bool(a * d < b * c)
    return False


def displayed(frame: VideoFrame, aspect: Fraction) -> tuple[int, int, float]:
    """Return height and width in square pixels, and the aspect ratio of stored pixels, all after rotation.

    The size keeps the longer side of a pixel, so that no stored row or column is lost.
    """
    height, width = frame.height, frame.width
    if _num_quarter_turns(frame) % 2:
        height, width, aspect = width, height, 1 / aspect
    ratio = float(aspect)
    return round(height * max(1 / ratio, 1)), round(width * max(ratio, 1)), ratio


def _planes(
    frames: Iterable[VideoFrame], pixels: PixelFormat, size: tuple[int, int] | None, aspect: Fraction
) -> Iterator[list[Tensor]]:
    """Convert decoded frames of one stream to a plane `(H, W)` of each channel, rotated and mirrored for display.

    All are resized to `size`, by default the displayed size of the first, whose stored pixels have this `aspect` ratio.
    """
    reformatter = VideoReformatter()  # shared by all frames, because it keeps the scaler's tables
    for frame in frames:
        size = size or displayed(frame, aspect)[:2]
        height, width = size[::-1] if _num_quarter_turns(frame) % 2 else size
        # PyAV before 17 confuses BT.709, the colour matrix of HD video, with BT.601. Planes have the values of "rgb24"
        # and take 0.4 of its time. One thread, because worker processes decode clips in parallel.
        is_deep = pixels.bit_depth == 16 and frame.format.components[0].bits > 8
        # swscale's luma is that of BT.601, to which it would convert another one.
        matrix = Colorspace.ITU601 if pixels.channels == "grey" and not frame.format.is_rgb else None
        target = width, height, FORMATS["pixels"][pixels.channels][is_deep], matrix
        converted = reformatter.reformat(frame, *target, interpolation=_INTERPOLATION, threads=1)
        if is_deep:
            planes = _deep_planes(converted, frame)
        else:  # in FFmpeg's memory
            lines = (torch.frombuffer(plane, dtype=torch.uint8).view(height, -1) for plane in converted.planes)
            planes = [each[:, :width] for each in lines]
            planes = [planes[2], *planes[:2], *planes[3:]] if len(planes) > 1 else planes  # green, blue, red, alpha
        if pixels.bit_depth == 16:  # int16 until the end, because PyTorch does not flip uint16
            planes = [(plane if is_deep else plane.int() * 257).to(torch.uint16).view(torch.int16) for plane in planes]
        num_turns = _num_quarter_turns(frame)
        planes = [plane.flip(0) for plane in planes] if _is_mirrored(frame) else planes
        planes = [torch.rot90(plane, num_turns) for plane in planes] if num_turns else planes
        yield planes if pixels.bit_depth == 8 else [plane.view(torch.uint16) for plane in planes]


def _deep_planes(converted: VideoFrame, frame: VideoFrame) -> list[Tensor]:
    """Return the planes, with white at 65535, of what swscale has converted from a frame of 9 to 16 bits."""
    values = torch.from_numpy(converted.to_ndarray())
    planes = [*values.unbind(-1)] if values.ndim == 3 else [values]
    if frame.format.is_rgb or len(planes) == 1:
        return planes  # exact already
    bits, number = frame.format.components[0].bits, len(frame.format.components)
    full = (2**bits - 1) << (16 - bits)  # swscale shifts bits
    is_limited = number > 2 and frame.color_range != ColorRange.JPEG
    whites = [_LIMITED_WHITE if is_limited else full] * 3 + [_WHITE if number % 2 else full]  # of the added alpha
    pairs = zip(planes, whites, strict=False)
    return [(plane.double() * _WHITE / white).round_().clamp_(max=_WHITE) for plane, white in pairs]


def iterate_frames(
    path: str | PathLike[str] | Source | VideoInfo, size: tuple[int, int] | None = None, pixels: PixelFormat = RGB
) -> Iterator[Tensor]:
    """Yield every frame in order as `read_clip`, `(H, W, C)`, resized to `size`, `(height, width)`.

    The default keeps the displayed size. The memory is constant. `path` is that of a video, or the index of a video, an
    image or an array. Raises a `DecodeError` as `read_clip`.
    """
    if isinstance(path, VideoInfo):
        if path.is_image or path.layout:
            for start in range(0, path.num_frames, _NUM_AT_ONCE):
                yield from read_clip(path, start, min(_NUM_AT_ONCE, path.num_frames - start), 1, size, pixels=pixels)
            return
        path = path.path
    with open_video(path) as (container, stream):
        decoded = decoded_frames(container.demux(stream), alpha=pixels.channels == "rgba")
        frames = (_check_intact(frame, path) for frame in decoded)
        for planes in _planes(frames, pixels, size, stream.sample_aspect_ratio or Fraction(1)):
            yield torch.stack(planes, dim=-1)


def read_clip(
    info: VideoInfo,
    start: int,
    num_frames: int,
    stride: int = 1,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    pixels: PixelFormat = RGB,
) -> Tensor:
    """Decode exactly the frames `start`, `start + stride`, ..., of a video as uint8 or uint16 `(T, H, W, C)`.

    Grey is the luma. RGBA is opaque without alpha, which is not multiplied with the colours. White of 16 bits is 65535.
    Those of an array are float32 in [-1, 1], with its own channels.

    Frames are counted in display order, from 0. `size`, `(height, width)`, resizes with an antialiased bicubic filter;
    the default keeps the displayed size.

    Raises:
        ValueError: a frame is outside the video, or an argument is below 1.
        DecodeError: a frame of the clip is corrupt or missing, or has more than `max_pixels`.
        DataError: a value of an array is outside of its range.
    """
    check_count("num_frames", num_frames)
    check_count("stride", stride)
    indices = range(start, start + (num_frames - 1) * stride + 1, stride)
    if start < 0 or indices[-1] >= info.num_frames:
        contract = f"inside the {info.num_frames} frames of {info.path}"
        remedy = "Start earlier, or use fewer frames or a smaller stride."
        raise argument_error("start", contract, f"frames {start} to {indices[-1]}", remedy)
    if info.layout:
        return read_array(info, indices, size or (info.height, info.width))
    if info.is_image:
        return _read_image(info.path, size, pixels)[None]
    size = size or (info.height, info.width)
    dtype = torch.uint8 if pixels.bit_depth == 8 else torch.uint16
    clip = torch.empty(len(indices), CHANNELS[pixels.channels], *size, dtype=dtype)
    with decode_errors(info.path, VIDEO_ERRORS), closing(_packets_from_keyframe(info, start, max_pixels)) as packets:
        frames = _select_frames(info, indices, packets, alpha=pixels.channels == "rgba")
        for frame, planes in zip(clip, _planes(frames, pixels, size, Fraction(1)), strict=True):
            torch._foreach_copy_(list(frame), planes)
    return clip.movedim(1, -1)


def _select_frames(
    info: VideoInfo, indices: range, packets: Iterable[Packet[VideoStream]], *, alpha: bool
) -> Iterator[VideoFrame]:
    """Decode packets in order, and yield the frames at `indices`, identified by their timestamps."""
    needed = {info.pts[index] for index in indices} if info.seekable else None
    decoded = decoded_frames(packets, alpha=alpha, needed=needed)
    stamped: Iterator[tuple[int, VideoFrame]] = enumerate(decoded)  # `pts` has the index of each frame
    if info.seekable:
        stamped = ((frame.pts, frame) for frame in decoded if frame.pts is not None)
    end = min(indices[-1] + 1 + _MAX_SKIPPED, info.num_frames)
    index_of = {info.pts[index]: index for index in range(indices[0], end)}
    numbered = ((index_of.get(stamp, -1), frame) for stamp, frame in stamped)
    for index in indices:
        found, frame = next(((number, frame) for number, frame in numbered if number >= index), (-1, None))
        if frame is None or found != index:
            raise DecodeError(f"{info.path}: frame {index} is missing")
        yield _check_intact(frame, info.path)


def _check_intact(frame: VideoFrame, path: str | PathLike[str] | Source) -> VideoFrame:
    """Return the frame, or raise a `DecodeError` if the decoder concealed errors in it."""
    if frame.is_corrupt:
        raise DecodeError(f"{path}: the frame with timestamp {frame.pts} is corrupt")
    return frame


def _packets_from_keyframe(
    info: VideoInfo, start: int, max_pixels: int = MAX_PIXELS
) -> Generator[Packet[VideoStream], None, None]:
    """Yield packets from a keyframe displayed at or before frame `start`.

    Containers seek by decoding time or byte position. If a seek ends too late, try an earlier keyframe, then the start.
    """
    nearest = bisect_right(info.keyframes, start) - 1
    # The last two keyframes, without the first one of the file, which is its start.
    tried = [info.pts[info.keyframes[i]] for i in range(nearest, max(nearest - 2, 0), -1)] if info.seekable else []
    for timestamp in tried:
        with open_video(info.path, max_pixels) as (container, stream):
            try:
                container.seek(timestamp, stream=stream)
            except FFmpegError:  # the container cannot seek
                continue
            packets = container.demux(stream)
            first = next(packets, None)
            if first is not None and first.is_keyframe and first.pts is not None and first.pts <= tried[0]:
                yield from chain((first,), packets)
                return
    with open_video(info.path, max_pixels) as (container, stream):
        yield from container.demux(stream)


def _read_image(source: Source, size: tuple[int, int] | None = None, pixels: PixelFormat = RGB) -> Tensor:
    """Decode an image as `pixels`, `(H, W, C)`, rotated as its EXIF data says, and resized as by `read_clip`.

    Palettes and CMYK are converted to RGB, and without RGBA transparent pixels are composited onto white.
    """
    with open_image(source) as image:
        if pixels.bit_depth == 16 and (deep := _deep_png(source, image, pixels)) is not None:
            return torch.stack(next(_planes([deep], pixels, size, Fraction(1))), dim=-1)
        image.getexif()  # Pillow keeps what it has read, and would fail to write odd tags again
        image.info = {name: value for name, value in image.info.items() if "exif" not in name}
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image takes much memory
        upright = _converted(image, pixels)
        if size is not None and upright.size != size[::-1]:
            bands = upright.split() if upright.mode == "RGBA" else [upright]  # Pillow would multiply with alpha
            resized = [band.resize(size[::-1], Image.Resampling.BICUBIC) for band in bands]
            upright = Image.merge("RGBA", resized) if len(resized) > 1 else resized[0]
        width, height = upright.size
        values = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8).reshape(height, width, -1)
        return values if pixels.bit_depth == 8 else values.int().mul_(257).to(torch.uint16)


def _deep_png(source: Source, image: Image.Image, pixels: PixelFormat) -> VideoFrame | None:
    """Return the frame of a PNG of 16 bits, which Pillow would reduce to 8; None for another image."""
    if image.format != "PNG":
        return None
    file: Any = image.fp  # type: ignore[attr-defined]
    position, _ = file.tell(), file.seek(0)
    data = file.read()
    file.seek(position)
    if data[_PNG_DEPTH] != 16:
        return None
    decoder: Any = CodecContext.create("png", "r")
    frame: VideoFrame = [*decoder.decode(Packet(data)), *decoder.decode(None)][0]
    has_alpha = any(component.is_alpha for component in frame.format.components)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 or (has_alpha and pixels.channels != "rgba"):
        raise DecodeError(f"{source}: a PNG of 16 bits with a turn or with alpha, which is read with 8 bits or as RGBA")
    return frame


@contextmanager
def open_image(source: Source, deadline: Deadline | None = None) -> Iterator[Image.Image]:
    """Open an image; raise a `DecodeError` if it is animated, or if Pillow fails, also inside the `with` block."""
    if isinstance(source, TarMember) and source.size > _MAX_MEMBER_BYTES:
        raise DecodeError(f"{source}: {source.size} bytes, more than the {_MAX_MEMBER_BYTES} of an image in a tar file")
    with decode_errors(source, _IMAGE_ERRORS), open_local(source, _open_pillow, deadline) as image:
        if image.format in FORMATS["may_be_animated"] and getattr(image, "is_animated", False):
            raise ValueError(_ANIMATED)
        yield image


def _open_pillow(source: Path | TarMember) -> Image.Image:
    try:
        return Image.open(content_of(source), formats=FORMATS["image_formats"])
    except Image.UnidentifiedImageError as error:
        raise ValueError("not an image that Pillow can read") from error


def _converted(image: Image.Image, pixels: PixelFormat) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey. `convert("L")` alone would clip it at 255.
        is_opaque = np.asarray(image) != image.info.pop("transparency", -1)
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
        if not is_opaque.all():
            image.putalpha(Image.fromarray(is_opaque))
    if pixels.channels == "rgba" and image.has_transparency_data:
        return image.convert("RGBA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # which has a grey that is not that of CMYK
    return rgb if pixels.channels == "rgb" else rgb.convert("L" if pixels.channels == "grey" else "RGBA")
