"""What indexing found out, kept in a file, so that the next start is instant."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import sys
import tarfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import Any, TypeAlias

from telecine.data.index import index_video
from telecine.data.info import VideoInfo
from telecine.data.source import Source, TarMember, members_of
from telecine.files import write_aside

logger = logging.getLogger(__name__)

INDEX_NAME = ".telecine-index"
# Raise it whenever what is stored, or what `index_video` finds out, changes: older files are then made anew.
_FORMAT = [2, sys.byteorder]
_FIELDS = ("width", "height", "fps", "seekable", "time_base", "is_image")

Stamp: TypeAlias = tuple[int, ...]
"""By which a file is known to be the same: size and time of the last change in nanoseconds, and the place in a tar."""
Place: TypeAlias = tuple[str, int, int]
"""Name, offset and size of a member."""
Archives: TypeAlias = dict[str, tuple[Stamp, list[Place]]]
Infos: TypeAlias = dict[str, tuple[Stamp, VideoInfo]]


class RememberedIndex:
    """The index of all videos of a place, read from its file where a file's size and time of change are the same.

    The file lies beside the data, or in the user's cache folder where that cannot be written to. One that is damaged,
    or of another version, is made anew.

    Args:
        data: the folder, list, tar file or pattern that the videos were found by.
    """

    def __init__(self, data: Path) -> None:
        self.path = index_path(data)
        self.root = _root(data)
        self._archives, self._infos = _load(self.path)
        self._used_archives: Archives = {}
        self._used_infos: Infos = {}

    def members(self, archive: Path) -> list[TarMember]:
        """Return the videos and images of a tar file; of one that is broken, those before the broken part."""
        key, stamp = self._key(archive), _stamp(archive)
        known_stamp, places = self._archives.get(key, (None, []))
        if known_stamp != stamp:
            places = _scan(archive)
        self._used_archives[key] = stamp, places
        return [TarMember(archive, *place) for place in places]

    def info(self, source: Source) -> VideoInfo:
        """Return the index of a video or an image.

        Raises:
            DecodeError: it has to be indexed, and cannot be decoded.
        """
        try:
            stamp = _stamp(source)
        except OSError:
            return index_video(source)  # which says what is wrong
        key = self._key(source)
        known_stamp, info = self._infos.get(key, (None, None))
        if info is None or known_stamp != stamp:
            info = replace(index_video(source), path=Path(key))
        self._used_infos[key] = stamp, info
        return replace(info, path=source)

    def save(self) -> None:
        """Write the file, unless it holds just this already; a place that cannot be written to is logged."""
        if self._used_infos == self._infos and self._used_archives == self._archives:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(self.path, self._write)
        except OSError as error:
            logger.warning("the index of the data is not kept, and made anew at the next start: %s", error)

    def _key(self, source: Source) -> str:
        return os.path.relpath(str(source), self.root)

    def _write(self, path: Path) -> None:
        header = {
            "format": _FORMAT,
            "archives": [[key, stamp, places] for key, (stamp, places) in self._used_archives.items()],
            "infos": [
                [key, stamp, [getattr(info, name) for name in _FIELDS], len(info.pts), len(info.keyframes)]
                for key, (stamp, info) in self._used_infos.items()
            ],
        }
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(json.dumps(header).encode() + b"\n")
            for _, info in self._used_infos.values():
                file.write(info.pts.tobytes() + info.keyframes.tobytes())


def index_path(data: Path) -> Path:
    """Return the index file of a place: hidden in the folder or beside the file, else in the user's cache folder."""
    root = _root(data)
    name = INDEX_NAME if root == data else f".{_short_hash(os.path.relpath(data, root))}{INDEX_NAME}"
    if os.access(root, os.W_OK):
        return root / name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "telecine" / "indices" / f"{_short_hash(str(data.absolute()))}{INDEX_NAME}"


def _root(data: Path) -> Path:
    """Return the folder that holds all the data."""
    if data.is_dir():
        return data
    return next(parent for parent in data.parents if not has_magic(str(parent)) and parent.is_dir())


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _stamp(source: Source) -> Stamp:
    archive, place = (source.archive, (source.offset, source.size)) if isinstance(source, TarMember) else (source, ())
    status = archive.stat()
    return status.st_size, status.st_mtime_ns, *place


def _scan(archive: Path) -> list[Place]:
    places: list[Place] = []
    try:
        for member in members_of(archive):
            places.append((member.name, member.offset, member.size))  # noqa: PERF401 - kept if a later one is broken
    except (OSError, tarfile.TarError) as error:
        logger.warning("%s: is broken after its first %d videos and images: %s", archive, len(places), error)
    return places


def _load(path: Path) -> tuple[Archives, Infos]:
    """Read the file; of none, or of one that does not fit, nothing is known."""
    if not path.exists():
        return {}, {}
    try:
        with gzip.open(path, "rb") as file:
            header = json.loads(file.readline())
            if header["format"] != _FORMAT:
                logger.info("%s is of another version; the data is indexed anew", path)
                return {}, {}
            stamps = array("q")
            stamps.frombytes(file.read())
            return _archives(header["archives"]), dict(_infos(header["infos"], stamps))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s); the data is indexed anew", path, error)
        return {}, {}


def _archives(rows: list[Any]) -> Archives:
    return {key: (tuple(stamp), [(name, offset, size) for name, offset, size in places]) for key, stamp, places in rows}


def _infos(rows: list[Any], stamps: array[int]) -> Iterator[tuple[str, tuple[Stamp, VideoInfo]]]:
    """Yield the indices of videos, whose time stamps and keyframes follow each other in `stamps`."""
    begin = 0
    for key, stamp, fields, num_pts, num_keyframes in rows:
        middle = begin + num_pts
        end = middle + num_keyframes
        pts, keyframes, begin = stamps[begin:middle], stamps[middle:end], end
        yield (
            key,
            (
                tuple(stamp),
                VideoInfo(Path(key), pts=pts, keyframes=keyframes, **dict(zip(_FIELDS, fields, strict=True))),
            ),
        )
    if begin != len(stamps):
        raise ValueError(f"{len(stamps)} time stamps instead of {begin}")
