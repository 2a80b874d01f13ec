"""The index of `clips.index: ahead`: all exact indices of a data set in one file, which the next run reads."""

from __future__ import annotations

import gzip
import io
import logging
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from telecine.base.files import atomic_write, read_bounded
from telecine.data.errors import Deadline
from telecine.data.fingerprint import Fingerprint, look_up_source
from telecine.data.index import index_video
from telecine.data.index_keys import index_root, key_of
from telecine.data.index_paths import index_path
from telecine.data.lazy.index_file import (
    DAMAGE_ERRORS,
    FORMAT,
    column_parts_of_infos,
    infos_of_columns,
    read_columns,
    write_columns,
)
from telecine.data.lazy.string_column import StringColumn
from telecine.data.source import File, Source, TarMember, VideoInfo, check_frame
from telecine.data.tar_files import scan_tar
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 60.0
# A file that telecine did not write may unpack to any size. An index unpacks to 3 to 24 times its size.
_MAX_BYTES = 2**31
_MAX_RATIO = 64
# The source of indices that were read: `AheadIndex.info` replaces it.
_NO_SOURCE = Path()

_MemberLocation: TypeAlias = tuple[str, int, int]  # name, offset and size of a tar member
_Archives: TypeAlias = dict[int, list[_MemberLocation]]  # by the keys of tar files
_Infos: TypeAlias = dict[int, VideoInfo]  # by the keys of videos and images


class AheadIndex:
    """Indexes the videos of a folder, list, tar file or pattern, and reuses the results for unchanged files.

    It is a file next to the data, or in the user's cache folder if the data is read-only or remote. A damaged
    one, or one of another version, is replaced. `members` and `info` save it once a minute. Several threads may index.

    Args:
        data: A path, a pattern or an address, as `telecine.data.load_spans`.
        config: The limits of `index_video`.
    """

    def __init__(self, data: str | PathLike[str], config: ClipConfig | None = None) -> None:
        self.config = config or ClipConfig()
        self.path = index_path(data)
        self._root = index_root(data)
        self._archives, self._infos = _read(self.path)
        self._used: set[int] = set()  # keys of entries that were looked up
        self._is_changed = False
        self._last_save = time.monotonic()
        self._lock = threading.Lock()  # held while entries change or are written

    def members(self, archive: File) -> list[TarMember]:
        """Return the videos, images and arrays of a tar file, up to any damage."""
        key = key_of(archive, Fingerprint.of(archive), self._root)
        locations = self._archives.get(key)
        if locations is None:
            deadline = Deadline(archive, self.config.timeout)
            locations, is_final = scan_tar(archive, deadline, _location_of)
            if is_final:
                with self._lock:
                    self._archives[key] = locations
                    self._is_changed = True
        self._mark_used_and_maybe_save(key)
        return [TarMember(archive, *location) for location in locations]

    def info(self, source: Source) -> VideoInfo:
        """Return the index of a video, an image or an array, see `index_video`. That of an array is not kept."""
        deadline = Deadline(source, self.config.timeout)
        looked_up = look_up_source(source, deadline)
        if looked_up is None:
            return index_video(source, self.config, deadline)
        source, fingerprint = looked_up
        key = key_of(source, fingerprint, self._root)
        info = self._infos.get(key)
        if info is None:
            info = index_video(source, self.config, deadline)
            with self._lock:
                self._infos[key] = info
                self._is_changed = True
        check_frame(source, info.width, info.height, self.config)
        self._mark_used_and_maybe_save(key)
        return replace(info, source=source)

    def _mark_used_and_maybe_save(self, key: int) -> None:
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


def _location_of(member: TarMember, _: BinaryIO) -> _MemberLocation:
    return member.name, member.offset, member.size


def _write(path: Path, archives: _Archives, infos: _Infos) -> None:
    """Write the columns of `column_parts_of_infos`, and those of members, one tar file after the other."""
    locations = list(chain.from_iterable(archives.values()))
    names = StringColumn.of(name for name, _, _ in locations)
    counts = [len(members) for members in archives.values()]
    columns = column_parts_of_infos(list(infos), list(infos.values()))
    columns["archive.key"] = [np.array(list(archives), np.int64)]
    columns["archive.num_members"] = [np.array(counts, np.int64)]
    columns["name.content"] = [names.content]
    columns["name.end"] = [names.ends]
    columns["offset"] = [np.array([offset for _, offset, _ in locations], np.int64)]
    columns["size"] = [np.array([size for _, _, size in locations], np.int64)]
    with gzip.open(path, "wb", compresslevel=1) as file:
        write_columns(file, columns, {"format": FORMAT})


def _read(path: Path) -> tuple[_Archives, _Infos]:
    """Read the file. Return nothing if it is missing, damaged, or of another version."""
    if not path.exists():
        return {}, {}
    try:
        columns = read_columns(_unpack(read_bounded(path, _MAX_BYTES)))
        infos = infos_of_columns(columns, _NO_SOURCE)
        infos_by_key = dict(zip(columns["exact.key"].tolist(), infos, strict=True))
        return _archives_of(columns), infos_by_key
    except (*DAMAGE_ERRORS, EOFError, zlib.error) as error:
        text = "%s is damaged or of another version of telecine (%s); indexing the data again"
        logger.warning(text, path, error)
        return {}, {}


def _unpack(packed: bytes) -> bytes:
    max_bytes = 2**20 + _MAX_RATIO * len(packed)
    with gzip.open(io.BytesIO(packed)) as file:
        content = file.read(max_bytes)
        if file.read(1):
            raise ValueError("it unpacks to more than an index has")
    return content


def _archives_of(columns: Mapping[str, NDArray[Any]]) -> _Archives:
    """Return the members of tar files, by the keys of these."""
    names = StringColumn(columns["name.content"], columns["name.end"])
    offsets = columns["offset"].tolist()
    sizes = columns["size"].tolist()
    counts = columns["archive.num_members"].tolist()
    if sum(counts) != len(names):
        raise ValueError(f"{len(names)} members in place of {sum(counts)}")
    locations = zip(names, offsets, sizes, strict=True)
    archives: _Archives = {}
    for key, num_members in zip(columns["archive.key"].tolist(), counts, strict=True):
        archives[key] = list(islice(locations, num_members))
    return archives
