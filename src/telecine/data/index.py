"""Indexing the frames of videos, so that any clip can be read exactly."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import Any

from telecine.data.decode import decoded_frames, display_size, open_video
from telecine.data.errors import DataError, DecodeError
from telecine.data.image import index_image
from telecine.data.info import VideoInfo
from telecine.data.progress import with_progress
from telecine.data.source import Source, TarMember, as_source, is_image
from telecine.shapes import argument_error

logger = logging.getLogger(__name__)

# One keyframe in more frames than this makes reading a clip a matter of seconds.
LONG_GOP = 300
# VP8 stores frames that are never shown as packets of their own.
_HIDDEN_FRAME_CODECS = frozenset({"vp8"})
_NUM_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Skipped:
    """A file that was passed over, and why."""

    path: Source
    reason: str


def index_video(path: str | PathLike[str] | TarMember) -> VideoInfo:
    """Index one video by reading its packets and decoding its first frame, or one image by reading its header.

    All frames are decoded only where packets do not tell which frames are shown: missing or repeated time stamps,
    codecs with hidden frames, a beginning that cannot be decoded. What the container says about its duration is
    not used. Nor can one without a table of frames (Matroska, MPEG-TS) tell that it was cut off: what is there is
    indexed.

    Raises:
        DecodeError: the file cannot be read, holds no decodable video, or ends early.
    """
    source = as_source(path)
    if is_image(source):
        return index_image(source)
    first = _first_frame(path)
    scan = _scan_packets(path)
    stamps, seekable = scan.stamps, True
    if not scan.trusted or stamps[0][0] != first.pts:
        stamps, seekable = _scan_frames(path)
    height, width = display_size(first)
    info = VideoInfo(
        path=source,
        width=width,
        height=height,
        fps=scan.fps,
        pts=array("q", (pts for pts, _ in stamps)),
        keyframes=array("q", (position for position, (_, is_key) in enumerate(stamps) if is_key)),
        seekable=seekable,
        time_base=scan.time_base if seekable else 1 / scan.fps,
    )
    _warn_if_slow(info)
    return info


def index_videos(
    paths: Iterable[str | PathLike[str] | TarMember], *, index: Callable[[Source], VideoInfo] = index_video
) -> tuple[list[VideoInfo], list[Skipped]]:
    """Index videos, several at a time, passing over those that cannot be decoded.

    Args:
        paths: the videos and images.
        index: what indexes one; another than `index_video` may remember.

    Returns:
        The index of each good file, in the order given, and the files passed over, which are logged as well.

    Raises:
        DataError: no file is decodable; the first few reasons are in the message.
    """
    results = list(_index_all([as_source(path) for path in paths], index))
    infos = [result for result in results if isinstance(result, VideoInfo)]
    skipped = [result for result in results if isinstance(result, Skipped)]
    if not infos:
        got = f"{len(skipped)} that cannot be decoded: {listed(skipped)}"
        remedy = "Check that they are complete and play in a video player."
        raise argument_error("data", "at least one decodable video", got, remedy, DataError)
    if skipped:
        logger.warning("skipped %d of %d videos: %s", len(skipped), len(skipped) + len(infos), listed(skipped))
    return infos, skipped


def _index_all(sources: Sequence[Source], index: Callable[[Source], VideoInfo]) -> Iterator[VideoInfo | Skipped]:
    def index_or_skip(source: Source) -> VideoInfo | Skipped:
        try:
            return index(source)
        except DecodeError as error:
            return Skipped(source, str(error).removeprefix(f"{source}: "))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from with_progress(pool.map(index_or_skip, sources), "indexing videos", total=len(sources))


def listed(skipped: Sequence[Skipped]) -> str:
    """Name the first few that were passed over, and how many more there are."""
    shown = "; ".join(f"{skip.path} ({skip.reason})" for skip in skipped[:_NUM_REASONS_SHOWN])
    num_more = len(skipped) - _NUM_REASONS_SHOWN
    return f"{shown}; and {num_more} more" if num_more > 0 else shown


def _first_frame(path: str | PathLike[str] | TarMember) -> Any:
    """Decode the first frame that is shown, so that a stream that only looks like a video is noticed."""
    with open_video(path) as (container, stream):
        frame = next(decoded_frames(container.demux(stream)), None)
    if frame is None:
        raise DecodeError(f"{path}: no frame can be decoded")
    if frame.is_corrupt:
        raise DecodeError(f"{path}: its first frame is broken")
    return frame


@dataclass(frozen=True)
class _Scan:
    """What packets tell about a stream's frames, in the order of display."""

    stamps: list[tuple[int, bool]]
    """Time stamp of each frame, and whether it is a keyframe."""
    fps: float
    time_base: float
    trusted: bool
    """Whether there is a time stamp of its own for every frame that is shown, and for no other."""


def _scan_packets(path: str | PathLike[str] | TarMember) -> _Scan:
    """Read all packets, keeping none of their bytes."""
    with open_video(path) as (container, stream):
        packets = [
            (packet.pts, packet.is_keyframe, packet.is_discard, packet.is_corrupt)
            for packet in container.demux(stream)
            if packet.size
        ]
        if not packets or packets[-1][3] or _ends_early(container, stream, len(packets)):
            raise DecodeError(f"{path}: ends early, after {len(packets)} frames")
        shown = [(pts, is_key) for pts, is_key, is_discard, _ in packets if not is_discard]
        stamps = sorted((pts, is_key) for pts, is_key in shown if pts is not None)
        distinct = len({pts for pts, _ in stamps}) == len(shown)
        trusted = distinct and stream.codec_context.name not in _HIDDEN_FRAME_CODECS
        return _Scan(stamps, _frame_rate(stream, stamps), float(stream.time_base), trusted)


def _ends_early(container: Any, stream: Any, num_packets: int) -> bool:
    """Say whether an MP4 holds fewer frames than its table lists; other containers' counts are only estimates.

    Of the table, the entries that an edit list leaves out do not count.
    """
    return "mp4" in container.format.name and num_packets < min(stream.frames, len(stream.index_entries))


def _scan_frames(path: str | PathLike[str] | TarMember) -> tuple[list[tuple[int, bool]], bool]:
    """Decode everything; return each frame's time stamp and whether it is a keyframe, and whether stamps can be used.

    Unless every frame has one that is above the last, numbers take their place.
    """
    with open_video(path) as (container, stream):
        frames = [(frame.pts, bool(frame.key_frame)) for frame in decoded_frames(container.demux(stream))]
    stamps = [pts for pts, _ in frames if pts is not None]
    seekable = len(stamps) == len(frames) and all(a < b for a, b in pairwise(stamps))
    return [(stamps[i] if seekable else i, is_key) for i, (_, is_key) in enumerate(frames)], seekable


def _frame_rate(stream: Any, stamps: Sequence[tuple[int, bool]]) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if rate:
        return float(rate)
    if len(stamps) < 2 or stamps[0][0] == stamps[-1][0]:
        return 25.0
    return (len(stamps) - 1) / (stamps[-1][0] - stamps[0][0]) / float(stream.time_base)


def _warn_if_slow(info: VideoInfo) -> None:
    if info.num_frames <= LONG_GOP or (info.seekable and len(info.keyframes) > 1):
        return
    logger.warning(
        "%s: %d frames behind a single keyframe, so that a clip takes as long to read as its position is late. "
        "Cache decoded frames, or re-encode with a short GOP: `ffmpeg -i IN -c:v libx264 -crf 16 -g 30 OUT.mp4`.",
        info.path,
        info.num_frames,
    )
