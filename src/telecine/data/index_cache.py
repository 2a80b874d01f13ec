"""The index of a data set, kept in a file, so that the next run does not index the same videos again."""

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
from typing import TypeAlias, TypedDict

from telecine.data.index import index_video
from telecine.data.source import Source, TarMember, tar_members
from telecine.data.video_info import MAX_PIXELS, VideoInfo, check_frame_size
from telecine.files import atomic_write

logger = logging.getLogger(__name__)

INDEX_NAME = ".telecine-index"
# Increase the number when the content of the file, or what `index_video` finds, changes. Older files are then ignored.
_FORMAT = [3, sys.byteorder]
_FIELDS = ("width", "height", "fps", "seekable", "time_base", "is_image")

Fingerprint: TypeAlias = tuple[int, ...]
"""Identifies the content of a source: size and modification time in ns, and offset and size of a tar member."""
MemberLocation: TypeAlias = tuple[str, int, int]
"""Name, offset and size of a tar member."""
Archives: TypeAlias = dict[str, tuple[Fingerprint, list[MemberLocation]]]
Infos: TypeAlias = dict[str, tuple[Fingerprint, VideoInfo]]
_InfoRow: TypeAlias = tuple[str, list[int], tuple[int, int, float, bool, float, bool], int, int]
"""Path, fingerprint, `_FIELDS`, and numbers of timestamps and of keyframes."""


class _Header(TypedDict):
    """The first line of the file, as JSON. After it come the timestamps and keyframes as 64-bit integers."""

    format: list[int | str]
    archives: list[tuple[str, list[int], list[MemberLocation]]]
    infos: list[_InfoRow]


class IndexCache:
    """Indexes videos, and reuses the saved result if a file's size and modification time are unchanged.

    The file is stored next to the data, or in the user's cache folder if the data is read-only. A damaged file, or one
    of another format version, is ignored and replaced.

    Args:
        data: The folder, list, tar file or pattern that names the videos.
    """

    def __init__(self, data: Path) -> None:
        self.path = index_cache_path(data)
        self._root = _data_root(data)
        self._archives, self._infos = _load(self.path)
        self._used_archives: Archives = {}
        self._used_infos: Infos = {}

    def members(self, archive: Path) -> list[TarMember]:
        """Return the videos and images of a tar file. If the file is damaged, return those before the damage."""
        key, fingerprint = self._key(archive), _fingerprint(archive)
        saved_fingerprint, locations = self._archives.get(key, (None, []))
        if saved_fingerprint != fingerprint:
            locations = _scan_archive(archive)
        self._used_archives[key] = fingerprint, locations
        return [TarMember(archive, *location) for location in locations]

    def info(self, source: Source, max_pixels: int = MAX_PIXELS) -> VideoInfo:
        """Return the index of a video or an image.

        Raises:
            DecodeError: it is not in the cache, and cannot be decoded; or its frames are too large.
        """
        try:
            fingerprint = _fingerprint(source)
        except OSError:
            return index_video(source, max_pixels)  # raises an error with the reason
        key = self._key(source)
        saved_fingerprint, info = self._infos.get(key, (None, None))
        if info is None or saved_fingerprint != fingerprint:
            info = replace(index_video(source, max_pixels), path=Path(key))
        check_frame_size(source, info.width, info.height, max_pixels)
        self._used_infos[key] = fingerprint, info
        return replace(info, path=source)

    def save(self) -> None:
        """Write the file if its content changed. Failure to write is logged."""
        if self._used_infos == self._infos and self._used_archives == self._archives:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, self._write)
        except OSError as error:
            logger.warning("the index cannot be saved, so the next run indexes the data again: %s", error)

    def _key(self, source: Source) -> str:
        return os.path.relpath(str(source), self._root)

    def _write(self, path: Path) -> None:
        header = {
            "format": _FORMAT,
            "archives": [[key, *entry] for key, entry in self._used_archives.items()],
            "infos": [
                [key, fingerprint, [getattr(info, name) for name in _FIELDS], len(info.pts), len(info.keyframes)]
                for key, (fingerprint, info) in self._used_infos.items()
            ],
        }
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(json.dumps(header).encode() + b"\n")
            for _, info in self._used_infos.values():
                file.write(info.pts.tobytes() + info.keyframes.tobytes())


def index_cache_path(data: Path) -> Path:
    """Return the cache file of a data set: a hidden file next to the data, or in the user's cache folder."""
    root = _data_root(data)
    name = INDEX_NAME if root == data else f".{_short_hash(os.path.relpath(data, root))}{INDEX_NAME}"
    if os.access(root, os.W_OK):
        return root / name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "telecine" / "indices" / f"{_short_hash(str(data.absolute()))}{INDEX_NAME}"


def _data_root(data: Path) -> Path:
    """Return the deepest folder that contains all the data."""
    if data.is_dir():
        return data
    return next(parent for parent in data.parents if not has_magic(str(parent)) and parent.is_dir())


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _fingerprint(source: Source) -> Fingerprint:
    if isinstance(source, TarMember):
        return *_fingerprint(source.archive), source.offset, source.size
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def _scan_archive(archive: Path) -> list[MemberLocation]:
    locations: list[MemberLocation] = []
    try:
        for member in tar_members(archive):
            # Not a comprehension: the members before a damaged one are kept.
            locations.append((member.name, member.offset, member.size))  # noqa: PERF401
    except (OSError, tarfile.TarError) as error:
        logger.warning("%s: damaged after its first %d videos and images: %s", archive, len(locations), error)
    return locations


def _load(path: Path) -> tuple[Archives, Infos]:
    """Read the file. Return nothing if it is missing, damaged, or of another format version."""
    if not path.exists():
        return {}, {}
    try:
        with gzip.open(path, "rb") as file:
            header: _Header = json.loads(file.readline())
            if header["format"] != _FORMAT:
                logger.info("%s has another format version; indexing the data again", path)
                return {}, {}
            numbers = array("q")
            numbers.frombytes(file.read())
            return _parse_archives(header), dict(_parse_infos(header["infos"], numbers))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s); indexing the data again", path, error)
        return {}, {}


def _parse_archives(header: _Header) -> Archives:
    return {
        key: (tuple(fingerprint), [(name, offset, size) for name, offset, size in locations])
        for key, fingerprint, locations in header["archives"]
    }


def _parse_infos(rows: list[_InfoRow], numbers: array[int]) -> Iterator[tuple[str, tuple[Fingerprint, VideoInfo]]]:
    """Yield the saved infos. `numbers` has the timestamps and keyframes of each, one after the other."""
    begin = 0
    for key, fingerprint, fields, num_pts, num_keyframes in rows:
        middle = begin + num_pts
        end = middle + num_keyframes
        width, height, fps, seekable, time_base, is_image = fields
        pts, keyframes, begin = numbers[begin:middle], numbers[middle:end], end
        info = VideoInfo(Path(key), width, height, fps, pts, keyframes, seekable, time_base, is_image)
        yield key, (tuple(fingerprint), info)
    if begin != len(numbers):
        raise ValueError(f"expected {begin} timestamps and keyframes, but found {len(numbers)}")
