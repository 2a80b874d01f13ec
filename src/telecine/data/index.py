"""Finding video files and indexing their frames, so that any clip can be read exactly."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

from telecine.data.decode import decoded_frames, display_size, open_video
from telecine.data.errors import DataError, DecodeError
from telecine.data.info import VideoInfo
from telecine.data.progress import with_progress
from telecine.shapes import argument_error

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".h264", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
# One keyframe in more frames than this makes reading a clip a matter of seconds.
LONG_GOP = 300
# VP8 stores frames that are never shown as packets of their own.
_HIDDEN_FRAME_CODECS = frozenset({"vp8"})
_NUM_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Skipped:
    """A file that was passed over, and why."""

    path: Path
    reason: str


def find_videos(path: str | PathLike[str], *, name: str = "data") -> list[Path]:
    """List the video files at `path`: itself if it is a file, else those in the folder and below, sorted.

    In a folder, files are told by their suffix, upper or lower case, and hidden ones are left out. `name` is what an
    error calls the path.

    Raises:
        DataError: there is nothing at `path`, or the folder holds no video.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise argument_error(
            name, "a video file or a folder", f"{path}, which does not exist", "Check the path.", DataError
        )
    videos = sorted(file for file in path.rglob("*") if _is_video(file.relative_to(path)) and file.is_file())
    if not videos:
        contract = f"a folder that holds videos ({', '.join(sorted(VIDEO_SUFFIXES))})"
        remedy = "Check the path; folders below it are searched too."
        raise argument_error(name, contract, f"{path}, which holds none", remedy, DataError)
    return videos


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def index_video(path: str | PathLike[str]) -> VideoInfo:
    """Index one video by reading its packets and decoding its first frame.

    All frames are decoded only where packets do not tell which frames are shown: missing or repeated time stamps,
    codecs with hidden frames, a beginning that cannot be decoded. What the container says about its duration is
    not used. Nor can one without a table of frames (Matroska, MPEG-TS) tell that it was cut off: what is there is
    indexed.

    Raises:
        DecodeError: the file cannot be read, holds no decodable video, or ends early.
    """
    first = _first_frame(path)
    scan = _scan_packets(path)
    stamps, seekable = scan.stamps, True
    if not scan.trusted or stamps[0][0] != first.pts:
        stamps, seekable = _scan_frames(path)
    height, width = display_size(first)
    info = VideoInfo(
        path=Path(path),
        width=width,
        height=height,
        fps=scan.fps,
        pts=array("q", (pts for pts, _ in stamps)),
        keyframes=array("q", (position for position, (_, is_key) in enumerate(stamps) if is_key)),
        seekable=seekable,
    )
    _warn_if_slow(info)
    return info


def index_videos(paths: Iterable[str | PathLike[str]]) -> tuple[list[VideoInfo], list[Skipped]]:
    """Index videos, passing over those that cannot be decoded.

    Returns:
        The index of each good file, in the order given, and the files passed over, which are logged as well.

    Raises:
        DataError: no file is decodable; the first few reasons are in the message.
    """
    results = [_index_or_skip(path) for path in with_progress(list(paths), "indexing videos")]
    infos = [result for result in results if isinstance(result, VideoInfo)]
    skipped = [result for result in results if isinstance(result, Skipped)]
    if not infos:
        got = f"{len(skipped)} that cannot be decoded: {_listed(skipped)}"
        remedy = "Check that they are complete and play in a video player."
        raise argument_error("data", "at least one decodable video", got, remedy, DataError)
    if skipped:
        logger.warning("skipped %d of %d videos: %s", len(skipped), len(skipped) + len(infos), _listed(skipped))
    return infos, skipped


def _index_or_skip(path: str | PathLike[str]) -> VideoInfo | Skipped:
    try:
        return index_video(path)
    except DecodeError as error:
        return Skipped(Path(path), str(error).removeprefix(f"{path}: "))


def _listed(skipped: Sequence[Skipped]) -> str:
    shown = "; ".join(f"{skip.path} ({skip.reason})" for skip in skipped[:_NUM_REASONS_SHOWN])
    num_more = len(skipped) - _NUM_REASONS_SHOWN
    return f"{shown}; and {num_more} more" if num_more > 0 else shown


def _first_frame(path: str | PathLike[str]) -> Any:
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
    trusted: bool
    """Whether there is a time stamp of its own for every frame that is shown, and for no other."""


def _scan_packets(path: str | PathLike[str]) -> _Scan:
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
        return _Scan(stamps, _frame_rate(stream, stamps), trusted)


def _ends_early(container: Any, stream: Any, num_packets: int) -> bool:
    """Say whether an MP4 holds fewer frames than its table lists; other containers' counts are only estimates."""
    return "mp4" in container.format.name and num_packets < stream.frames


def _scan_frames(path: str | PathLike[str]) -> tuple[list[tuple[int, bool]], bool]:
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
