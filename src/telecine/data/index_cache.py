"""The index of a data set, kept in a file, so that the next run does not index the same videos again."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import sys
import tarfile
import threading
import time
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import replace
from glob import has_magic
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from telecine.base.files import atomic_write, user_cache_folder
from telecine.data.index import index_video
from telecine.data.remote import look_up, open_local
from telecine.data.source import (
    File,
    RemotePath,
    Source,
    TarMember,
    VideoInfo,
    check_frame_size,
    file_of,
    is_address,
    tar_members,
)
from telecine.settings import MAX_PIXELS

logger = logging.getLogger(__name__)

INDEX_NAME = ".telecine-index"
SECONDS_BETWEEN_SAVES = 60.0
# Increase the number when the content of the file, or what `index_video` finds, changes. Older files are then ignored.
_FORMAT = [5, sys.byteorder]
# A file that was not written by telecine may unpack to any size. Indices take 4 to 8 times their size, in lines of
# a few hundred bytes.
_MAX_RATIO, _MAX_LINE = 64, 2**16
_FIELDS = ("width", "height", "fps", "seekable", "time_base", "is_image", "sample_aspect_ratio")

Fingerprint: TypeAlias = tuple[int, ...]
"""Identifies the content of a source: size and modification time in ns, and offset and size of a tar member.

A remote file has a hash of its version instead of a modification time."""
MemberLocation: TypeAlias = tuple[str, int, int]
"""Name, offset and size of a tar member."""
Archives: TypeAlias = dict[str, tuple[Fingerprint, list[MemberLocation]]]
Infos: TypeAlias = dict[str, tuple[Fingerprint, VideoInfo]]
_Row: TypeAlias = tuple[str, Fingerprint, VideoInfo, int, int]
"""Path, fingerprint, the info without its numbers, and how many timestamps and keyframes it has."""


class IndexCache:
    """Indexes videos, and reuses the saved result if a file's size and modification time are unchanged.

    The file is stored next to the data, or in the user's cache folder if the data is read-only or remote. A damaged
    file, or one of another format version, is ignored and replaced. It is saved every `SECONDS_BETWEEN_SAVES`, so that
    a process that is killed loses little. Several threads may index.

    Args:
        data: The folder, list, tar file or pattern that names the videos.
    """

    def __init__(self, data: str | PathLike[str]) -> None:
        self.path = index_cache_path(data)
        self._root = self.path.parent if is_address(str(data)) else deepest_folder(Path(data))
        self._archives, self._infos = _load(self.path)
        self._used_archives: Archives = {}
        self._used_infos: Infos = {}
        self._last_save = time.monotonic()
        self._is_saving = threading.Lock()

    def members(self, archive: File) -> list[TarMember]:
        """Return the videos and images of a tar file. If the file is damaged, return those before the damage."""
        key, fingerprint = self._key(archive), fingerprint_of(archive)
        saved_fingerprint, locations = self._archives.get(key, (None, []))
        if saved_fingerprint != fingerprint:
            locations = _scan_archive(archive)
        self._used_archives[key] = fingerprint, locations
        self._save_now_and_then()
        return [TarMember(archive, *location) for location in locations]

    def info(self, source: Source, max_pixels: int = MAX_PIXELS) -> VideoInfo:
        """Return the index of a video or an image.

        Raises:
            DecodeError: it is not in the cache, and cannot be decoded; or its frames are too large.
        """
        try:
            source = look_up(source) if isinstance(source, RemotePath) else source
            fingerprint = fingerprint_of(source)
        except OSError:
            return index_video(source, max_pixels)  # raises an error with the reason
        key = self._key(source)
        saved_fingerprint, info = self._infos.get(key, (None, None))
        if info is None or saved_fingerprint != fingerprint:
            info = replace(index_video(source, max_pixels), path=Path(key))
        check_frame_size(source, info.width, info.height, max_pixels)
        self._used_infos[key] = fingerprint, info
        self._save_now_and_then()
        return replace(info, path=source)

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._last_save < SECONDS_BETWEEN_SAVES or not self._is_saving.acquire(blocking=False):
            return
        try:
            self.save(is_complete=False)
        finally:
            self._last_save = time.monotonic()
            self._is_saving.release()

    def save(self, *, is_complete: bool = True) -> None:
        """Write the file if its content changed. Failure to write is logged.

        Args:
            is_complete: Whether all the data was looked up. What was not is then removed from the file.
        """
        archives = ({} if is_complete else self._archives) | self._used_archives
        infos = ({} if is_complete else self._infos) | self._used_infos
        if infos == self._infos and archives == self._archives:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, lambda partial: _write(partial, archives, infos))
            self._archives, self._infos = archives, infos
        except OSError as error:
            logger.warning("the index cannot be saved, so the next run indexes the data again: %s", error)

    def _key(self, source: Source) -> str:
        return str(source) if isinstance(file_of(source), RemotePath) else os.path.relpath(str(source), self._root)


def index_cache_path(data: str | PathLike[str]) -> Path:
    """Return the cache file of a data set: a hidden file next to the data, or in the user's cache folder."""
    cache = user_cache_folder() / "indices"
    if is_address(str(data)):
        return cache / f"{_short_hash(str(data))}{INDEX_NAME}"
    data = Path(data)
    root = deepest_folder(data)
    name = INDEX_NAME if root == data else f".{_short_hash(os.path.relpath(data, root))}{INDEX_NAME}"
    if os.access(root, os.W_OK):
        return root / name
    return cache / f"{_short_hash(str(data.absolute()))}{INDEX_NAME}"


def deepest_folder(data: Path) -> Path:
    """Return the deepest folder that contains all that a path or a pattern matches."""
    if data.is_dir():
        return data
    return next(parent for parent in data.parents if not has_magic(str(parent)) and parent.is_dir())


def _short_hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]


def fingerprint_of(source: Source) -> Fingerprint:
    """Return what identifies the content of a source, see `Fingerprint`."""
    if isinstance(source, TarMember):
        return *fingerprint_of(source.archive), source.offset, source.size
    if isinstance(source, RemotePath):
        known = look_up(source)
        return known.size or 0, int(hashlib.sha256(os.fsencode(known.version)).hexdigest()[:15], 16)
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def _scan_archive(archive: File) -> list[MemberLocation]:
    locations: list[MemberLocation] = []

    def scan(path: Path) -> None:
        for member in tar_members(path):
            # Not a comprehension: the members before a damaged one are kept.
            locations.append((member.name, member.offset, member.size))  # noqa: PERF401

    try:
        open_local(archive, scan)
    except (OSError, tarfile.TarError) as error:
        logger.warning("%s: damaged after its first %d videos and images: %s", archive, len(locations), error)
    return locations


def _write(path: Path, archives: Archives, infos: Infos) -> None:
    """Write one line of JSON for the format, each archive, member and video, then the 64-bit timestamps."""
    rows: list[object] = [[*_FORMAT, len(archives), len(infos)]]
    for key, (fingerprint, locations) in archives.items():
        rows += [[key, fingerprint, len(locations)], *locations]
    for key, (fingerprint, info) in infos.items():
        fields = [getattr(info, name) for name in _FIELDS]
        rows.append([key, fingerprint, fields, len(info.pts), len(info.keyframes)])
    with gzip.open(path, "wb", compresslevel=1) as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")
        for _, info in infos.values():
            file.write(info.pts.tobytes() + info.keyframes.tobytes())


def _load(path: Path) -> tuple[Archives, Infos]:
    """Read the file. Return nothing if it is missing, damaged, or of another format version."""
    if not path.exists():
        return {}, {}
    try:
        with gzip.open(path, "rb") as file:
            lines = _Lines(file, max_bytes=2**20 + _MAX_RATIO * path.stat().st_size)
            byte_format, byte_order, num_archives, num_infos = lines.next()
            if [byte_format, byte_order] != _FORMAT:
                logger.info("%s has another format version; indexing the data again", path)
                return {}, {}
            archives = dict(_parse_archive(lines) for _ in range(num_archives))
            rows = [_parse_info(*lines.next()) for _ in range(num_infos)]
            return archives, dict(_with_numbers(rows, lines.numbers()))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is damaged (%s); indexing the data again", path, error)
        return {}, {}


class _Lines:
    """The lines of an index, up to a size."""

    def __init__(self, file: gzip.GzipFile, max_bytes: int) -> None:
        self.file = file
        self.left = max_bytes

    def next(self) -> Any:
        """Return the values in the next line."""
        line = self.file.readline(_MAX_LINE)
        self.left -= len(line)
        if self.left < 0:
            raise ValueError("it unpacks to more than an index has")
        return json.loads(line)

    def numbers(self) -> array[int]:
        """Return the 64-bit integers after the lines."""
        content = self.file.read(self.left + 1)
        if len(content) > self.left:
            raise ValueError("it unpacks to more than an index has")
        found = array("q")
        found.frombytes(content)
        return found


def _parse_archive(lines: _Lines) -> tuple[str, tuple[Fingerprint, list[MemberLocation]]]:
    key, fingerprint, num_members = lines.next()
    members = [lines.next() for _ in range(num_members)]
    return str(key), (tuple(fingerprint), [(str(name), int(offset), int(size)) for name, offset, size in members])


def _parse_info(key: str, fingerprint: list[int], fields: list[Any], num_pts: int, num_keyframes: int) -> _Row:
    width, height, fps, seekable, time_base, is_image, aspect = fields
    empty: array[int] = array("q")
    numbers = (int(width), int(height), float(fps))
    facts = (bool(seekable), float(time_base), bool(is_image))
    info = VideoInfo(Path(key), *numbers, empty, empty, *facts, sample_aspect_ratio=float(aspect))
    if min(info.width, info.height, num_pts) < 1 or num_keyframes < 0 or not info.sample_aspect_ratio > 0:
        raise ValueError(f"{key!r} has no frames")
    return key, tuple(fingerprint), info, num_pts, num_keyframes


def _with_numbers(rows: list[_Row], numbers: array[int]) -> Iterator[tuple[str, tuple[Fingerprint, VideoInfo]]]:
    """Yield the saved infos. `numbers` has the timestamps and keyframes of each, one after the other."""
    begin = 0
    for key, fingerprint, info, num_pts, num_keyframes in rows:
        middle = begin + num_pts
        end = middle + num_keyframes
        yield key, (fingerprint, replace(info, pts=numbers[begin:middle], keyframes=numbers[middle:end]))
        begin = end
    if begin != len(numbers):
        raise ValueError(f"expected {begin} timestamps and keyframes, but found {len(numbers)}")
