"""Frame-exact decoding, resized on the way out of the decoder."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from os import PathLike
from typing import Any

import av
import torch
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from telecine.data.errors import DecodeError
from telecine.data.image import read_image
from telecine.data.info import VideoInfo
from telecine.data.source import TarMember, as_source, url_of
from telecine.shapes import argument_error

# The scaler widens its filter when it shrinks, so this does not alias. Of its filters it is the nearest to the usual
# antialiased bicubic: 50 dB on a zone plate brought from 720p to 128, where `AREA` reaches 30 and bilinear 36.
# Without full chroma interpolation and accurate rounding, videos of 4:2:0 and 4:2:2 come out up to 2 levels too dark.
# PyAV before 18 has no names for these two flags of swscale, but takes numbers.
_FULL_CHROMA, _ACCURATE_ROUNDING = 1 << 13, 1 << 18
INTERPOLATION = int(Interpolation.BICUBIC) | _FULL_CHROMA | _ACCURATE_ROUNDING
# Codecs whose packets say whether another frame depends on them, so that the decoder can leave out those that do not.
_MARKED_BY_CODEC = frozenset({"h264"})
# Before 19, PyAV refuses a file whose title is not UTF-8 unless told otherwise; since then it cannot be told.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextmanager
def _reported_as_decode_error(path: str | PathLike[str] | TarMember) -> Iterator[None]:
    try:
        yield
    except FFmpegError as error:
        raise DecodeError(f"{path}: {error.strerror}") from error


@contextmanager
def open_video(path: str | PathLike[str] | TarMember) -> Iterator[tuple[Any, Any]]:
    """Open a file or a member of a tar file for decoding on one thread and yield `(container, first video stream)`.

    Decoder threads that outlive the file hang worker processes forked later, hence one thread and a `with`.

    Raises:
        DecodeError: the file cannot be opened, holds no video, or fails inside the `with` block.
    """
    with _reported_as_decode_error(path), av.open(url_of(as_source(path)), **_ANY_METADATA) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise DecodeError(f"{path}: holds no video stream")
        if stream.codec_context is None:
            raise DecodeError(f"{path}: there is no decoder for its codec")
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        yield container, stream


def decoded_frames(packets: Iterable[Any]) -> Iterator[Any]:
    """Decode packets into frames in the order in which they are shown."""
    for packet in packets:
        yield from packet.decode()


def turns(frame: Any) -> int:
    """Say by how many quarter turns, counter-clockwise, a frame is to be rotated for display."""
    return round(frame.rotation / 90) % 4


def _is_mirrored(frame: Any) -> bool:
    """Say whether a frame is to be mirrored upside down, before it is turned, for display."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side_data))
    return bool(a * d < b * c)


def display_size(frame: Any) -> tuple[int, int]:
    """Return `(height, width)` as displayed, which rotation metadata swaps. Pixels are taken as square."""
    return (frame.width, frame.height) if turns(frame) % 2 else (frame.height, frame.width)


def rgb_frames(frames: Iterable[Any], size: tuple[int, int] | None = None) -> Iterator[Tensor]:
    """Convert decoded frames to uint8 RGB `(H, W, 3)`, upright.

    Args:
        frames: decoded frames of one stream.
        size: `(height, width)` of the result; without it the first frame's, which later ones are brought to
            if the stream changes its resolution.
    """
    reformatter = VideoReformatter()  # one for all frames: the scaler's tables are made once
    for frame in frames:
        size = size or display_size(frame)
        height, width = size[::-1] if turns(frame) % 2 else size
        # PyAV before 17 takes BT.709, the colours of HD video, for BT.601, and the other way round.
        rgb = reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=INTERPOLATION,
            threads=1,  # worker processes are the parallelism here
        )
        pixels = torch.from_numpy(rgb.to_ndarray())
        yield torch.rot90(pixels.flip(0) if _is_mirrored(frame) else pixels, turns(frame), (0, 1))


def iterate_frames(path: str | PathLike[str], size: tuple[int, int] | None = None) -> Iterator[Tensor]:
    """Yield every frame of a video in order as uint8 RGB `(H, W, 3)`, in constant memory.

    Args:
        path: a video file.
        size: `(height, width)` to resize to; as stored without it.

    Raises:
        DecodeError: the file cannot be opened or a frame is broken.
    """
    with open_video(path) as (container, stream):
        frames = (_intact(frame, path) for frame in decoded_frames(container.demux(stream)))
        yield from rgb_frames(frames, size)


def iterate_clips(path: str | PathLike[str], num_frames: int, size: tuple[int, int] | None = None) -> Iterator[Tensor]:
    """Yield a video in consecutive clips, uint8 RGB `(T, H, W, 3)`, in constant memory.

    `T` is `num_frames` except for the last clip, which holds what is left. Arguments and errors are those of
    `iterate_frames`.
    """
    if num_frames < 1:
        raise argument_error("num_frames", "at least 1", num_frames, "Ask for one frame or more.")
    clip: list[Tensor] = []
    for frame in iterate_frames(path, size):
        clip.append(frame)
        if len(clip) == num_frames:
            yield torch.stack(clip)
            clip = []
    if clip:
        yield torch.stack(clip)


def read_clip(
    info: VideoInfo, start: int, num_frames: int, stride: int = 1, size: tuple[int, int] | None = None
) -> Tensor:
    """Decode `num_frames` frames from position `start`, every `stride`-th, exactly those.

    Args:
        info: the indexed video.
        start: position of the first frame, counted from 0 in the order of display.
        num_frames: how many frames to return.
        stride: distance between them.
        size: `(height, width)` to resize to, with an antialiased bicubic filter; as displayed without it.

    Returns:
        uint8 RGB of shape `(T, H, W, 3)`.

    Raises:
        ValueError: the clip reaches beyond the video.
        DecodeError: a frame of the clip is broken or missing.
    """
    if num_frames < 1 or stride < 1:
        got = f"num_frames={num_frames}, stride={stride}"
        raise argument_error("num_frames` and `stride", "at least 1", got, "Ask for one frame or more.")
    positions = range(start, start + (num_frames - 1) * stride + 1, stride)
    if start < 0 or positions[-1] >= info.num_frames:
        contract = f"inside the {info.num_frames} frames of {info.path}"
        remedy = "Start earlier, or ask for fewer frames or a smaller stride."
        raise argument_error("start", contract, f"frames {start} to {positions[-1]}", remedy)
    if info.is_image:
        return read_image(info.path, size)[None]
    size = size or (info.height, info.width)
    clip = torch.empty(len(positions), *size, 3, dtype=torch.uint8)
    with _reported_as_decode_error(info.path), closing(_packets_before(info, start)) as packets:
        for i, frame in enumerate(rgb_frames(_pick(info, positions, packets), size)):
            clip[i] = frame
    return clip


def _pick(info: VideoInfo, positions: Sequence[int], packets: Iterable[Any]) -> Iterator[Any]:
    """Decode forward and keep the frames at `positions`, told by their time stamp."""
    stamped: Iterator[tuple[int, Any]]
    if info.seekable:
        frames = _frames_needed(packets, {info.pts[position] for position in positions})
        stamped = ((frame.pts, frame) for frame in frames if frame.pts is not None)
    else:
        # Without usable time stamps decoding began at the first frame, and a frame is told by its number.
        stamped = enumerate(decoded_frames(packets))
    for position in positions:
        wanted = info.pts[position]
        stamp, frame = next(((stamp, frame) for stamp, frame in stamped if stamp >= wanted), (None, None))
        if stamp != wanted:
            raise DecodeError(f"{info.path}: frame {position} is missing")
        yield _intact(frame, info.path)


def _frames_needed(packets: Iterable[Any], wanted: Container[int]) -> Iterator[Any]:
    """Decode packets, leaving out frames that are neither at a wanted time stamp nor needed to decode another."""
    for packet in packets:
        decoder = packet.stream.codec_context
        if decoder.name in _MARKED_BY_CODEC:
            decoder.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from packet.decode()


def _intact(frame: Any, path: str | PathLike[str] | TarMember) -> Any:
    """Return the frame, unless the decoder had to make up parts of it."""
    if frame.is_corrupt:
        raise DecodeError(f"{path}: the frame with time stamp {frame.pts} is broken")
    return frame


def _packets_before(info: VideoInfo, start: int) -> Generator[Any, None, None]:
    """Yield packets from a keyframe shown at or before `start`; from the file's beginning if no seek gets there.

    Containers seek by decoding time or by byte, so a seek may arrive behind the frame that was asked for. What
    arrives is looked at, and an earlier keyframe tried.
    """
    for keyframe in _keyframes_before(info, start):
        with open_video(info.path) as (container, stream):
            packets = container.demux(stream) if keyframe is None else _seek(container, stream, info.pts[keyframe])
            first = next(packets, None)
            arrived = first is not None and first.is_keyframe and first.pts is not None
            if first is not None and (keyframe is None or (arrived and first.pts <= info.pts[start])):
                yield from chain((first,), packets)
                return
    raise DecodeError(f"{info.path}: holds no packets any more")


def _keyframes_before(info: VideoInfo, start: int) -> Iterator[int | None]:
    """Yield the two keyframes nearest to `start`, then None for the beginning of the file."""
    nearest = bisect_right(info.keyframes, start) - 1
    if info.seekable:
        # The first keyframe is the beginning of the file, which needs no seek.
        yield from (info.keyframes[i] for i in range(nearest, max(nearest - 2, 0), -1))
    yield None


def _seek(container: Any, stream: Any, pts: int) -> Iterator[Any]:
    """Seek backward to a time stamp; yields nothing where the container cannot."""
    try:
        container.seek(pts, stream=stream)
    except FFmpegError:
        return
    yield from container.demux(stream)
