"""A table of the files of a data set: codec, size, rate, keyframes, use, and which of them are copies."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from telecine.base.terminal import with_progress
from telecine.data import DecodeError, TarMember, VideoInfo, read_clip
from telecine.data.decode import open_video
from telecine.data.index_cache import fingerprint_of
from telecine.data.remote import open_local
from telecine.data.source import Source, file_of
from telecine.data_report.measures import copies, frame_hash

# Frames of more videos are not compared: each takes three seeks.
MAX_COMPARED = 500
HASHED_SIZE = (72, 64)
PARTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class FileRow:
    """A file of the table."""

    path: str
    use: str
    """What it is used for, or why it is not used."""
    is_used: bool
    is_image: bool = False
    """False also for a file that cannot be read."""
    codec: str = ""
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    num_frames: int = 0
    keyframe_distance: int | None = None
    """Most frames from a keyframe to the next one, or to the end; None for an image."""


def file_row(info: VideoInfo, use: str, *, is_used: bool) -> FileRow:
    """Return the row of an indexed file."""
    return FileRow(
        path=str(info.path),
        use=use,
        is_used=is_used,
        is_image=info.is_image,
        codec="image" if info.is_image else codec_of(info.path),
        num_bytes=num_bytes(info.path),
        width=info.width,
        height=info.height,
        fps=info.fps,
        num_frames=info.num_frames,
        keyframe_distance=None if info.is_image else keyframe_distance(info),
    )


def keyframe_distance(info: VideoInfo) -> int:
    """Return the most frames from one keyframe to the next, or to the end; all if clips are read from the start."""
    starts = [0, *info.keyframes] if info.seekable else [0]
    return max(b - a for a, b in pairwise([*starts, info.num_frames]))


def codec_of(source: Source) -> str:
    """Return the name of the codec of a video."""
    with open_video(source) as (_, stream):
        return stream.codec_context.name


def num_bytes(source: Source) -> int:
    """Return the size of a file or of a member of a tar file."""
    return source.size if isinstance(source, TarMember) else fingerprint_of(source)[0]


def groups_of_copies(infos: Sequence[VideoInfo]) -> list[list[str]]:
    """Return the groups of videos and images that are copies of each other: by their bytes, or by their frames.

    Of more than `MAX_COMPARED` files, the frames of evenly spaced ones are compared.
    """
    by_bytes = same_bytes([info.path for info in infos])
    repeated = {path for group in by_bytes for path in group[1:]}
    others = [info for info in infos if info.path not in repeated]
    step = -(-len(others) // MAX_COMPARED) or 1
    hashed = [(info, found) for info in with_progress(others[::step], "comparing files") if (found := hashes_of(info))]
    by_frames = [[hashed[index][0].path for index in group] for group in copies([found for _, found in hashed])]
    return [[str(path) for path in group] for group in by_bytes + by_frames]


def same_bytes(sources: Sequence[Source]) -> list[list[Source]]:
    """Return the groups of files with the same bytes. Only files of the same size are read."""
    by_size: defaultdict[int, list[Source]] = defaultdict(list)
    for source in sources:
        by_size[num_bytes(source)].append(source)
    by_digest: defaultdict[str, list[Source]] = defaultdict(list)
    for group in by_size.values():
        for source in group if len(group) > 1 else ():
            by_digest[digest(source)].append(source)
    return [group for group in by_digest.values() if len(group) > 1]


def digest(source: Source) -> str:
    """Return the SHA-256 of a file or of a member of a tar file."""
    found, left = hashlib.sha256(), num_bytes(source)
    with open_local(source, open_bytes) as file:
        file.seek(source.offset if isinstance(source, TarMember) else 0)
        while left and (content := file.read(min(left, 2**20))):
            found.update(content)
            left -= len(content)
    return found.hexdigest()


def open_bytes(source: Path | TarMember) -> BinaryIO:
    """Open the file that holds a local source."""
    return open(str(file_of(source)), "rb")


def hashes_of(info: VideoInfo) -> tuple[int, ...]:
    """Return the hashes of three frames, or nothing if one is flat or cannot be decoded."""
    positions = [0] if info.is_image else [int(part * info.num_frames) for part in PARTS]
    try:
        found = [frame_hash(read_clip(info, position, 1, size=HASHED_SIZE)[0]) for position in positions]
    except DecodeError:
        return ()  # training replaces its clips, too, and logs the file
    return tuple(each for each in found if each is not None) if None not in found else ()
