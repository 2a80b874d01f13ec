"""The index of a data set, kept in a file, so that the next run does not index the same videos again."""

from __future__ import annotations

import gzip
import hashlib
import io
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
from dataclasses import fields, replace
from glob import has_magic
from itertools import count, islice
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from telecine.base.files import atomic_write, read_bounded, user_cache_folder
from telecine.data.errors import Deadline
from telecine.data.index import index_video
from telecine.data.remote import look_up, open_local
from telecine.data.source import RemotePath, Source, TarMember, VideoInfo, check_frame, is_address, kind_of, tar_members
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_INDEX_NAME = ".telecine-index"
_SECONDS_BETWEEN_SAVES = 60.0
# Increase the number when the content of the file, or what `index_video` finds, changes. Older files are then ignored.
_FORMAT = [9, sys.byteorder]
# A file that telecine did not write may unpack to any size. An index unpacks to 4 to 8 times its size, in lines of a
# few hundred bytes.
_MAX_BYTES, _MAX_RATIO, _MAX_LINE = 2**31, 64, 2**16
_GZIP = 16 + zlib.MAX_WBITS  # of zlib, for the format of gzip
_FIELDS = [each.name for each in fields(VideoInfo) if each.name not in ("path", "pts", "keyframes", "layout", "range")]

_Fingerprint: TypeAlias = tuple[int, ...]  # see `fingerprint_of`
_MemberLocation: TypeAlias = tuple[str, int, int]  # name, offset and size of a tar member
_Archives: TypeAlias = dict[str, tuple[_Fingerprint, list[_MemberLocation]]]
_Infos: TypeAlias = dict[str, tuple[_Fingerprint, VideoInfo]]


class IndexCache:
    """Indexes the videos of a folder, list, tar file or pattern, and reuses the results for unchanged files.

    The cache is a file next to the data, or in the user's cache folder if the data is read-only or remote, replaced
    if damaged, and saved every `_SECONDS_BETWEEN_SAVES`. Several threads may index, within the limits of `config`.
    """

    def __init__(self, data: str | PathLike[str], config: ClipConfig | None = None) -> None:
        self.config = config or ClipConfig()
        self.path = _index_cache_path(data)
        self._root = self.path.parent if is_address(str(data)) else deepest_folder(Path(data))
        self._archives, self._infos = _load(self.path)
        self._used_archives: _Archives = {}
        self._used_infos: _Infos = {}
        self._last_save = time.monotonic()
        self._is_saving = threading.Lock()

    def members(self, archive: Path | RemotePath) -> list[TarMember]:
        """Return the videos and images of a tar file, up to any damage."""
        key, fingerprint = self._key(archive), fingerprint_of(archive)
        saved_fingerprint, locations = self._archives.get(key, (None, []))
        if saved_fingerprint != fingerprint:
            locations = _scan_archive(archive, Deadline(archive, self.config.timeout))
        self._used_archives[key] = fingerprint, locations
        self._save_now_and_then()
        return [TarMember(archive, *location) for location in locations]

    def info(self, source: Source) -> VideoInfo:
        """Return the index of a video, an image or an array, see `index_video`. That of an array is not kept."""
        if kind_of(source) == "arrays":
            return index_video(source, self.config)
        try:
            if isinstance(source, RemotePath):
                source = look_up(source, Deadline(source, self.config.timeout))
            fingerprint = fingerprint_of(source)
        except OSError:
            return index_video(source, self.config)  # raises an error with the reason
        key = self._key(source)
        saved_fingerprint, info = self._infos.get(key, (None, None))
        if info is None or saved_fingerprint != fingerprint:
            info = replace(index_video(source, self.config), path=Path(key))
        check_frame(source, info.width, info.height, self.config)
        self._used_infos[key] = fingerprint, info
        self._save_now_and_then()
        return replace(info, path=source)

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._last_save >= _SECONDS_BETWEEN_SAVES and self._is_saving.acquire(blocking=False):
            try:
                self.save(is_complete=False)
            finally:
                self._last_save = time.monotonic()
                self._is_saving.release()

    def save(self, *, is_complete: bool = True) -> None:
        """Write the file if its content changed; log a failure. If all data was looked up, remove other entries."""
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
        return str(source) if is_address(str(source)) else os.path.relpath(str(source), self._root)


def _index_cache_path(data: str | PathLike[str]) -> Path:
    """Return the cache file of a data set: a hidden file next to the data, or in the user's cache folder."""
    identity = str(data)
    if not is_address(identity):
        data = Path(data)
        root, identity = deepest_folder(data), str(data.absolute())
        if os.access(root, os.W_OK):
            return root / (_INDEX_NAME if root == data else f".{_short_hash(os.path.relpath(data, root))}{_INDEX_NAME}")
    return user_cache_folder() / "indices" / f"{_short_hash(identity)}{_INDEX_NAME}"


def deepest_folder(data: Path) -> Path:
    """Return the deepest folder above everything that a path or a pattern matches."""
    if data.is_dir():
        return data
    return next(parent for parent in data.parents if not has_magic(str(parent)) and parent.is_dir())


def _short_hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]


def fingerprint_of(source: Source) -> _Fingerprint:
    """Return integers that identify the content of a source: size, and time of change in ns or a hash of its version.

    A tar member adds its offset and size.
    """
    if isinstance(source, TarMember):
        return *fingerprint_of(source.archive), source.offset, source.size
    if isinstance(source, RemotePath):
        known = look_up(source)
        return known.size or 0, int(hashlib.sha256(os.fsencode(known.version)).hexdigest()[:15], 16)
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def num_bytes(source: Source) -> int:
    """Return the size of a file or of a member of a tar file."""
    return source.size if isinstance(source, TarMember) else fingerprint_of(source)[0]


def _scan_archive(archive: Path | RemotePath, deadline: Deadline) -> list[_MemberLocation]:
    locations: list[_MemberLocation] = []
    location = attrgetter("name", "offset", "size")
    try:  # `extend` keeps the members before a damaged one
        open_local(archive, lambda path: locations.extend(map(location, deadline.limit(tar_members(path)))), deadline)
    except (OSError, tarfile.TarError) as error:
        logger.warning("%s: damaged after its first %d members: %s", archive, len(locations), error)
    return locations


def _write(path: Path, archives: _Archives, infos: _Infos) -> None:
    """Write one line of JSON for the format, each archive, member and video, then the 64-bit timestamps."""
    rows: list[object] = [[*_FORMAT, len(archives), len(infos)]]
    for key, (fingerprint, locations) in archives.items():
        rows += [[key, fingerprint, len(locations)], *locations]
    for key, (fingerprint, info) in infos.items():
        facts = {name: getattr(info, name) for name in _FIELDS}
        rows.append([key, fingerprint, facts, len(info.pts), len(info.keyframes)])
    with gzip.open(path, "wb", compresslevel=1) as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")
        for _, info in infos.values():
            file.write(info.pts.tobytes() + info.keyframes.tobytes())


def _load(path: Path) -> tuple[_Archives, _Infos]:
    """Read the file. Return nothing if it is missing, damaged, or of another format version."""
    if not path.exists():
        return {}, {}
    try:
        packed, unpacker = read_bounded(path, _MAX_BYTES), zlib.decompressobj(_GZIP)
        content = unpacker.decompress(packed, 2**20 + _MAX_RATIO * len(packed))
        if not unpacker.eof:
            raise ValueError("it is cut short, or unpacks to more than an index has")
        lines = io.BytesIO(content)
        rows = (json.loads(lines.readline(_MAX_LINE)) for _ in count())
        byte_format, byte_order, num_archives, num_infos = next(rows)
        if [byte_format, byte_order] != _FORMAT:
            logger.info("%s has another format version; indexing the data again", path)
            return {}, {}
        archives: _Archives = {}
        for key, fingerprint, num_members in islice(rows, num_archives):
            members = islice(rows, num_members)
            locations = [(str(name), int(offset), int(size)) for name, offset, size in members]
            archives[str(key)] = tuple(fingerprint), locations
        infos = [*islice(rows, num_infos)]
        numbers = array("q")
        numbers.frombytes(memoryview(content)[lines.tell() :])
        return archives, dict(_parse_infos(infos, numbers))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is damaged (%s); indexing the data again", path, error)
        return {}, {}


def _parse_infos(rows: list[Any], numbers: array[int]) -> Iterator[tuple[str, tuple[_Fingerprint, VideoInfo]]]:
    """Yield the saved infos. `numbers` has the timestamps and keyframes of each, one after the other."""
    begin = 0
    for key, fingerprint, facts, num_pts, num_keyframes in rows:
        middle, end = begin + num_pts, begin + num_pts + num_keyframes
        info = VideoInfo(Path(key), pts=numbers[begin:middle], keyframes=numbers[middle:end], **facts)
        sizes = num_pts, num_keyframes + 1, info.width, info.height, info.fps, info.time_base, info.sample_aspect_ratio
        if not min(sizes) > 0:
            raise ValueError(f"{key!r} has no frames")
        yield key, (tuple(fingerprint), info)
        begin = end
    if begin != len(numbers):
        raise ValueError(f"expected {begin} timestamps and keyframes, but found {len(numbers)}")
