"""Exact decoding of the frames of videos, images and arrays."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import torch
from av.codec import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from telecine.base.checks import argument_error, check_count
from telecine.data.arrays import read_array
from telecine.data.errors import Deadline, DecodeError, decode_errors
from telecine.data.image import ANIMATED, read_image
from telecine.data.pixels import FrameConverter
from telecine.data.remote_read import Reads, open_local
from telecine.data.source import (
    AnyPath,
    LocalSource,
    TarMember,
    VideoInfo,
    as_source,
    open_file,
)
from telecine.settings import CHANNELS, MAX_PIXELS, RGB, PixelFormat

# FFmpeg recognises formats by content, whatever the name. Formats that name other files, such as `hls`, are left out.
_CONTAINERS = (
    "mov",
    "mp4",
    "avi",
    "flv",
    "h264",
    "hevc",
    "m4v",
    "matroska",
    "webm",
    "mpeg",
    "mpegvideo",
    "mpegts",
    "ogg",
    "asf",
    "ivf",
    "obu",
    "mxf",
    "nut",
    "dv",
    "rm",
    "yuv4mpegpipe",
    "apng",
)
_ANIMATED_IMAGE = "gif"  # FFmpeg reads it as a video. It is opened for its error.
# FFmpeg's own decoders of these codecs drop the alpha of WebM, which is a stream inside each packet.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Codecs whose packets tell whether another frame depends on them. The decoder can skip the others.
_CODECS_WITH_REFERENCE_FLAGS = ("h264",)
# Of this many frames after a clip, the decoder returns at least one, which tells that a frame is missing.
_MAX_SKIPPED = 32
_NUM_AT_ONCE = 16  # frames of an array that are read at once
_OPEN_OPTIONS: dict[str, Any] = {
    "options": {"format_whitelist": ",".join([*_CONTAINERS, _ANIMATED_IMAGE])}
}
if int(av.__version__.split(".")[0]) < 19:
    # PyAV before 19 by default refuses files with metadata that is not UTF-8. PyAV 19 has no such option.
    _OPEN_OPTIONS["metadata_errors"] = "replace"

# A `ValueError`: FFmpeg reads it, but PyAV does not know it.
VIDEO_ERRORS = (FFmpegError, OSError, ValueError)


@contextmanager
def open_video(
    path: AnyPath,
    max_pixels: int = MAX_PIXELS,
    deadline: Deadline | None = None,
    *,
    whole: bool = False,
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file or tar member for decoding on one thread, and yield its container and first stream of moving video.

    Args:
        path: The file.
        max_pixels: Largest height times width of a frame. Decoding a larger one fails.
        deadline: The time by which what is read of a file at an address must arrive.
        whole: Whether most of a file at an address is read, which is then fetched at once.

    Raises:
        DecodeError: the file has no video that can be decoded, or FFmpeg or PyAV fails inside the `with` block.
        DataError: a file at an address has not arrived by the deadline.
    """
    reads: Reads = "whole" if whole else "parts"
    with (
        decode_errors(path, VIDEO_ERRORS),
        open_local(as_source(path), open_container, deadline, reads=reads) as container,
    ):
        if container.format.name == _ANIMATED_IMAGE:
            raise DecodeError(f"{path}: {ANIMATED}")
        stream = _moving_stream(container)
        if stream is None:
            raise DecodeError(f"{path}: has no video stream")
        if stream.codec_context is None:
            raise DecodeError(f"{path}: no decoder for its codec is available")
        # A worker hangs if it is forked while decoder threads are alive.
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.options = {
            "max_pixels": str(max_pixels)
        }  # also for frames that grow within the stream
        yield container, stream


def open_container(source: LocalSource) -> InputContainer:
    """Open a file, a tar member or an open file of one of the formats that are read.

    Raises:
        DecodeError: It is of another format, or damaged.
    """
    file = open_file(source)
    opened: str | BinaryIO = file
    if isinstance(source, (Path, TarMember)):
        file.close()  # FFmpeg would wait for a FIFO
        # Without a protocol, FFmpeg takes the part of a name before a colon for one.
        opened = f"file:{source}"
    if isinstance(source, TarMember):
        opened = f"subfile,,start,{source.offset},end,{source.offset + source.size},,:file:{source.archive}"
    try:
        return av.open(opened, **_OPEN_OPTIONS)
    except av.error.ArgumentError as error:
        formats = " ".join(_CONTAINERS)
        raise DecodeError(
            f"{source}: not one of the formats that are read ({formats}), or damaged"
        ) from error


def _moving_stream(container: InputContainer) -> VideoStream | None:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the picture on a cover
            return stream
    return None


def decode_packets(
    packets: Iterable[Packet[VideoStream]],
    *,
    alpha: bool = False,
    needed: Container[int] | None = None,
) -> Iterator[VideoFrame]:
    """Decode packets into frames in display order.

    Args:
        packets: Packets in the order of the file.
        alpha: Whether to decode the alpha of VP8 and VP9.
        needed: Timestamps of frames. Other frames that no frame depends on may be skipped.
    """
    alpha_decoder: Any = None
    for packet in packets:
        codec = packet.stream.codec_context
        if alpha and alpha_decoder is None:
            alpha_decoder = _alpha_decoder(packet.stream)
        if needed is not None and codec.name in _CODECS_WITH_REFERENCE_FLAGS:
            is_needed = packet.pts is None or packet.pts in needed
            codec.skip_frame = "DEFAULT" if is_needed else "NONREF"
        if alpha_decoder is None:
            yield from packet.decode()
        elif packet.size > 0:
            yield from alpha_decoder.decode(packet)
        else:  # the end of the file
            yield from alpha_decoder.decode(None)


def _alpha_decoder(stream: VideoStream) -> Any:
    """Return a decoder that keeps the alpha of a stream; None if its own decoder does, or it has none."""
    codec = stream.codec_context
    if codec.name not in _ALPHA_DECODERS or stream.metadata.get("alpha_mode") != "1":
        return None
    decoder: Any = CodecContext.create(_ALPHA_DECODERS[codec.name], "r")
    decoder.thread_count = 1
    decoder.options = codec.options
    return decoder


def iterate_frames(
    path: AnyPath | VideoInfo, size: tuple[int, int] | None = None, pixels: PixelFormat = RGB
) -> Iterator[Tensor]:
    """Yield all frames in order, in constant memory.

    Args:
        path: A video, or the index of a video, an image or an array.
        size: Height and width to resize to, as `read_clip`; by default the displayed size.
        pixels: The channels and bits of the frames.

    Returns:
        An iterator over frames `(H, W, C)` with the values of `read_clip`.

    Raises:
        DecodeError: a frame is corrupt, or the file cannot be read, or lacks a frame of its index.
        DataError: a value of an array is outside of its range.
    """
    max_pixels = MAX_PIXELS
    info = None
    if isinstance(path, VideoInfo):
        info = path
        if path.is_image or path.is_array:
            for start in range(0, path.num_frames, _NUM_AT_ONCE):
                num_frames = min(_NUM_AT_ONCE, path.num_frames - start)
                yield from read_clip(path, start, num_frames, size=size, pixels=pixels)
            return
        height, width = path.stored_size
        max_pixels = max(MAX_PIXELS, height * width)  # what indexed it had such a limit
        path = path.source
    with open_video(path, max_pixels, whole=True) as (container, stream):
        converter = FrameConverter(pixels, size, stream.sample_aspect_ratio or Fraction(1))
        frames = decode_packets(container.demux(stream), alpha=pixels.channels == "rgba")
        if info is not None:
            frames = _frames_in_order(info, frames)
        for frame in frames:
            _check_intact(frame, path)
            yield converter.frame(frame)


def _frames_in_order(info: VideoInfo, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield the frames of an index; skip others.

    Raises:
        DecodeError: one is missing.
    """
    number = 0
    index_of: dict[int | None, int] = {}  # filled at the first frame that is not the next one
    for frame in frames:
        is_expected = number < info.num_frames
        if info.seekable and is_expected:
            is_expected = frame.pts == info.pts[number]
        if is_expected:
            yield frame
            number += 1
            continue
        if not index_of:
            index_of.update((pts, index) for index, pts in enumerate(info.pts))
        if index_of.get(frame.pts, -1) > number:
            break
    if number < info.num_frames:
        raise DecodeError(f"{info.source}: frame {number} is missing")


def read_clip(
    info: VideoInfo,
    start: int,
    num_frames: int,
    stride: int = 1,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    pixels: PixelFormat = RGB,
) -> Tensor:
    """Decode exactly the frames `start`, `start + stride`, ... of a video, an image or an array.

    Grey is the luma. RGBA is opaque if the file has no alpha; colours are not multiplied with alpha.

    Args:
        info: The index of the file.
        start: Index of the first frame, in display order from 0.
        num_frames: Number of frames.
        stride: Distance between the frames in the video, 1 or more.
        size: Height and width to resize to, with an antialiased bicubic filter; by default the displayed size.
        max_pixels: Largest height times width of a stored frame.
        pixels: The channels and bits of the result. Arrays have their own channels.

    Returns:
        `(T, H, W, C)`: uint8, or uint16 with white at 65535; of an array float32 in [-1, 1].

    Raises:
        ValueError: a frame is outside the video, or an argument is below 1.
        DecodeError: a frame of the clip is corrupt or missing, or has more than `max_pixels`.
        DataError: a value of an array is outside of its range.
    """
    check_count("num_frames", num_frames)
    check_count("stride", stride)
    indices = range(start, start + (num_frames - 1) * stride + 1, stride)
    return read_frames(info, indices, size, max_pixels, pixels)


def read_frames(
    info: VideoInfo,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    pixels: PixelFormat = RGB,
) -> Tensor:
    """Decode exactly the frames with these indices, see `read_clip`.

    Args:
        info: The index of the file.
        indices: The indices in display order, from 0. A frame may repeat.
        size: Height and width to resize to.
        max_pixels: Largest height times width of a stored frame.
        pixels: The channels and bits of the result.

    Returns:
        `(T, H, W, C)`, see `read_clip`.

    Raises:
        ValueError: a frame is outside the video.
        DecodeError: a frame is corrupt or missing, or has more than `max_pixels`.
        DataError: a value of an array is outside of its range.
    """
    if indices[0] < 0 or indices[-1] >= info.num_frames:
        contract = f"inside the {info.num_frames} frames of {info.source}"
        remedy = "Start earlier, or use fewer frames or a smaller stride."
        raise argument_error("start", contract, f"frames {indices[0]} to {indices[-1]}", remedy)
    if info.is_array:
        return read_array(info, indices, size or (info.height, info.width))
    if info.is_image:
        return read_image(info.source, size, pixels)[None]
    once = list(dict.fromkeys(indices))
    frames = _read_video(info, once, size or (info.height, info.width), max_pixels, pixels)
    if len(once) == len(indices):
        return frames
    positions = {index: position for position, index in enumerate(once)}
    return frames[[positions[index] for index in indices]]


def _read_video(
    info: VideoInfo,
    indices: Sequence[int],
    size: tuple[int, int],
    max_pixels: int,
    pixels: PixelFormat,
) -> Tensor:
    dtype = torch.uint8 if pixels.bit_depth == 8 else torch.uint16
    clip = torch.empty(len(indices), CHANNELS[pixels.channels], *size, dtype=dtype)
    converter = FrameConverter(pixels, size)
    # The index has a displayed size, so the aspect ratio of pixels is not needed again.
    with (
        decode_errors(info.source, VIDEO_ERRORS),
        closing(_packets_from_keyframe(info, indices[0], max_pixels)) as packets,
    ):
        frames = _select_frames(info, indices, packets, alpha=pixels.channels == "rgba")
        for channels, frame in zip(clip, frames, strict=True):
            for channel, plane in zip(channels, converter.planes(frame), strict=True):
                channel.copy_(plane)
    return clip.movedim(1, -1)


def _select_frames(
    info: VideoInfo, indices: Sequence[int], packets: Iterable[Packet[VideoStream]], *, alpha: bool
) -> Iterator[VideoFrame]:
    """Decode packets in order, and yield the frames at `indices`."""
    needed = None
    if info.seekable:
        needed = {info.pts[index] for index in indices}
    numbered = _numbered_frames(info, indices, decode_packets(packets, alpha=alpha, needed=needed))
    for index in indices:
        frame = _frame_of_index(numbered, index)
        if frame is None:
            raise DecodeError(f"{info.source}: frame {index} is missing")
        _check_intact(frame, info.source)
        yield frame


def _frame_of_index(numbered: Iterator[tuple[int, VideoFrame]], index: int) -> VideoFrame | None:
    """Return the frame of an index, after those before it; None if it is missing."""
    for number, frame in numbered:
        if number == index:
            return frame
        if number > index:
            return None
    return None


def _numbered_frames(
    info: VideoInfo, indices: Sequence[int], frames: Iterable[VideoFrame]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield frames with their indices in the video, by their timestamps if these are unique; skip others."""
    if info.seekable:
        end = min(indices[-1] + 1 + _MAX_SKIPPED, info.num_frames)
        index_of: dict[int | None, int] = {
            info.pts[index]: index for index in range(indices[0], end)
        }
        for frame in frames:
            if frame.pts in index_of:
                yield index_of[frame.pts], frame
    else:  # decoded from the start
        yield from enumerate(frames)


def _check_intact(frame: VideoFrame, path: AnyPath) -> None:
    """Raise a `DecodeError` if the decoder concealed errors in a frame."""
    if frame.is_corrupt:
        raise DecodeError(f"{path}: the frame with timestamp {frame.pts} is corrupt")


def _packets_from_keyframe(
    info: VideoInfo, start: int, max_pixels: int
) -> Generator[Packet[VideoStream], None, None]:
    """Yield packets from a keyframe displayed at or before frame `start`.

    Containers seek by decoding time or byte position. If a seek ends too late, try an earlier keyframe, then the start.
    """
    keyframes: list[int] = []
    if info.seekable:
        nearest = bisect_right(info.keyframes, start) - 1
        # The last two before `start`, without the first of the file, which is its start.
        keyframes = list(info.keyframes[max(nearest - 1, 1) : nearest + 1])
    for keyframe in reversed(keyframes):
        with open_video(info.source, max_pixels) as (container, stream):
            try:
                container.seek(info.pts[keyframe], stream=stream)
            except FFmpegError:  # the container cannot seek
                continue
            packets = container.demux(stream)
            first = next(packets, None)
            latest = info.pts[keyframes[-1]]
            if (
                first is not None
                and first.is_keyframe
                and first.pts is not None
                and first.pts <= latest
            ):
                yield first
                yield from packets
                return
    with open_video(info.source, max_pixels) as (container, stream):
        yield from container.demux(stream)
