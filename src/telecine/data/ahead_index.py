"""The index of `clips.index: ahead`: all exact indices of a data set in one file, which the next run reads."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import sys
import threading
import time
import zlib
from array import array
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from telecine.base.files import atomic_write, read_bounded
from telecine.data.errors import Deadline
from telecine.data.fingerprint import fingerprint_of, look_up_source
from telecine.data.index import index_video
from telecine.data.index_paths import index_path
from telecine.data.paths import deepest_folder
from telecine.data.source import (
    File,
    Source,
    TarMember,
    VideoInfo,
    check_frame,
    is_address,
)
from telecine.data.tar_files import scan_tar
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 60.0
# Increase the number when the content of the file, or what `index_video` finds, changes. Older files are then ignored.
_FORMAT_VERSION = 11
# A file that telecine did not write may unpack to any size. An index unpacks to 4 to 8 times its size, in lines of a
# few hundred bytes.
_MAX_BYTES = 2**31
_MAX_RATIO = 64
_MAX_LINE = 2**16
_DAMAGE_ERRORS = (
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RecursionError,
)
# Fields of `VideoInfo` that a line of the file has. Timestamps follow after all lines; arrays are not kept.
_LINE_FIELDS = [
    field.name
    for field in fields(VideoInfo)
    if field.name not in ("source", "pts", "keyframes", "layout", "range")
]

_Fingerprint: TypeAlias = tuple[int, ...]  # see `fingerprint_of`
_MemberLocation: TypeAlias = tuple[str, int, int]  # name, offset and size of a tar member
_Archives: TypeAlias = dict[str, tuple[_Fingerprint, list[_MemberLocation]]]
_Infos: TypeAlias = dict[str, tuple[_Fingerprint, VideoInfo]]


class AheadIndex:
    """Indexes the videos of a folder, list, tar file or pattern, and reuses the results for unchanged files.

    It is a file next to the data, or in the user's cache folder if the data is read-only or remote. A damaged
    one is replaced. `members` and `info` save it once a minute. Several threads may index.

    Args:
        data: A path, a pattern or an address, as `telecine.data.load_spans`.
        config: The limits of `index_video`.
    """

    def __init__(self, data: str | PathLike[str], config: ClipConfig | None = None) -> None:
        self.config = config or ClipConfig()
        self.path = index_path(data)
        self._root = self.path.parent if is_address(str(data)) else deepest_folder(Path(data))
        self._archives, self._infos = _read(self.path)
        self._used: set[str] = set()  # keys of entries that were looked up
        self._is_changed = False
        self._last_save = time.monotonic()
        self._lock = threading.Lock()  # held while entries change or are written

    def members(self, archive: File) -> list[TarMember]:
        """Return the videos, images and arrays of a tar file, up to any damage."""
        key = self._key(archive)
        fingerprint = fingerprint_of(archive)
        saved_fingerprint, locations = self._archives.get(key, (None, []))
        if saved_fingerprint != fingerprint:
            deadline = Deadline(archive, self.config.timeout)
            locations, _ = scan_tar(archive, deadline, _location_of)
            with self._lock:
                self._archives[key] = (fingerprint, locations)
                self._is_changed = True
        self._mark_used_and_maybe_save(key)
        return [TarMember(archive, *location) for location in locations]

    def info(self, source: Source) -> VideoInfo:
        """Return the index of a video, an image or an array, see `index_video`. That of an array is not kept."""
        looked_up = look_up_source(source, self.config)
        if looked_up is None:
            return index_video(source, self.config)
        source, file_fingerprint = looked_up
        fingerprint = file_fingerprint.of_source(source)
        key = self._key(source)
        saved_fingerprint, info = self._infos.get(key, (None, None))
        if info is None or saved_fingerprint != fingerprint:
            info = replace(index_video(source, self.config), source=Path(key))
            with self._lock:
                self._infos[key] = (fingerprint, info)
                self._is_changed = True
        check_frame(source, info.width, info.height, self.config)
        self._mark_used_and_maybe_save(key)
        return replace(info, source=source)

    def _mark_used_and_maybe_save(self, key: str) -> None:
        """Keep an entry in the file, and save the file if that was long ago."""
        with self._lock:
            self._used.add(key)
            if time.monotonic() - self._last_save >= _SECONDS_BETWEEN_SAVES:
                self._save()

    def save(self, *, is_complete: bool = True) -> None:
        """Write the file if its content changed. A failure is logged.

        Args:
            is_complete: Whether all of the data was looked up. Entries of other files are then removed.
        """
        with self._lock:
            if is_complete:
                self._remove_unused()
            self._save()

    def _remove_unused(self) -> None:
        unused = (self._archives.keys() | self._infos.keys()) - self._used
        for key in unused:
            self._archives.pop(key, None)
            self._infos.pop(key, None)
            self._is_changed = True

    def _save(self) -> None:
        self._last_save = time.monotonic()
        if not self._is_changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, lambda partial: _write(partial, self._archives, self._infos))
            self._is_changed = False
        except OSError as error:
            logger.warning(
                "the index cannot be saved, so the next run indexes the data again: %s", error
            )

    def _key(self, source: Source) -> str:
        """Return the name of a source in the file: relative to the data, so that a moved folder keeps its index."""
        name = str(source)
        return name if is_address(name) else os.path.relpath(name, self._root)


def _location_of(member: TarMember, _: BinaryIO) -> _MemberLocation:
    return member.name, member.offset, member.size


def _write(path: Path, archives: _Archives, infos: _Infos) -> None:
    """Write one line of JSON for the format, each archive, member and video, then the 64-bit timestamps."""
    lines: list[object] = [(_FORMAT_VERSION, sys.byteorder, len(archives), len(infos))]
    for key, (fingerprint, locations) in archives.items():
        lines.append((key, fingerprint, len(locations)))
        lines.extend(locations)
    for key, (fingerprint, info) in infos.items():
        values = {name: getattr(info, name) for name in _LINE_FIELDS}
        lines.append((key, fingerprint, values, len(info.pts), len(info.keyframes)))
    with gzip.open(path, "wb", compresslevel=1) as file:
        for line in lines:
            file.write(json.dumps(line).encode() + b"\n")
        for _, info in infos.values():
            file.write(info.pts.tobytes())
            file.write(info.keyframes.tobytes())


def _read(path: Path) -> tuple[_Archives, _Infos]:
    """Read the file. Return nothing if it is missing, damaged, or of another format version."""
    if not path.exists():
        return {}, {}
    try:
        content = io.BytesIO(_unpack(read_bounded(path, _MAX_BYTES)))
        version, byte_order, num_archives, num_infos = _read_line(content)
        if (version, byte_order) != (_FORMAT_VERSION, sys.byteorder):
            logger.info("%s has another format version; indexing the data again", path)
            return {}, {}
        return _read_archives(content, num_archives), _read_infos(content, num_infos)
    except _DAMAGE_ERRORS as error:
        logger.warning("%s is damaged (%s); indexing the data again", path, error)
        return {}, {}


def _unpack(packed: bytes) -> bytes:
    max_bytes = 2**20 + _MAX_RATIO * len(packed)
    with gzip.open(io.BytesIO(packed)) as file:
        content = file.read(max_bytes)
        if file.read(1):
            raise ValueError("it unpacks to more than an index has")
    return content


def _read_line(content: io.BytesIO) -> Any:
    return json.loads(content.readline(_MAX_LINE))


def _read_archives(content: io.BytesIO, num_archives: int) -> _Archives:
    archives: _Archives = {}
    for _ in range(num_archives):
        key, fingerprint, num_members = _read_line(content)
        locations = []
        for _ in range(num_members):
            name, offset, size = _read_line(content)
            locations.append((str(name), int(offset), int(size)))
        archives[str(key)] = (tuple(fingerprint), locations)
    return archives


def _read_infos(content: io.BytesIO, num_infos: int) -> _Infos:
    """Read the videos. The timestamps and keyframes of each follow after all lines."""
    lines = [_read_line(content) for _ in range(num_infos)]
    numbers = array("q")
    numbers.frombytes(content.read())
    infos: _Infos = {}
    begin = 0
    for key, fingerprint, values, num_pts, num_keyframes in lines:
        middle = begin + num_pts
        end = middle + num_keyframes
        info = VideoInfo(
            Path(key), pts=numbers[begin:middle], keyframes=numbers[middle:end], **values
        )
        sizes = (
            num_pts,
            info.width,
            info.height,
            info.fps,
            info.time_base,
            info.sample_aspect_ratio,
        )
        if not min(sizes) > 0 or num_keyframes < 0:  # also for NaN
            raise ValueError(f"{key!r} has no frames")
        infos[key] = (tuple(fingerprint), info)
        begin = end
    if begin != len(numbers):
        raise ValueError(f"expected {begin} timestamps and keyframes, but got {len(numbers)}")
    return infos
