"""Shards: files with headers, exact indices, or both, of many files each."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from telecine.data.lazy.header import HEADER, Header
from telecine.data.lazy.index_file import (
    DAMAGE_ERRORS,
    IndexFile,
    columns_of_infos,
    columns_of_records,
    remove_left,
    save_tensors,
)
from telecine.data.lazy.recent import Recent
from telecine.data.lazy.saved_headers import SavedHeaders
from telecine.data.lazy.sorted_numbers import concatenate, find_row
from telecine.data.source import Source, VideoInfo

logger = logging.getLogger(__name__)

_NUM_OPEN = 64  # shards that a process keeps open
# A process that is killed loses what it has read of fewer files, of fewer timestamps, and in less time.
_FILES_PER_SHARD = 1000
_TIMESTAMPS_PER_SHARD = 2**22
_SECONDS_PER_SHARD = 60.0
_NO_SOURCE = Path()  # of indices whose source is set later


class Shard(NamedTuple):
    """A file with headers and exact indices."""

    path: Path
    exact_keys: NDArray[np.int64]
    """The keys of files whose exact indices it has, sorted."""


class Shards:
    """The shards of a data set.

    Args:
        folders: Where they are. The first one is written to.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._shards: list[Shard] | None = None
        self._open: Recent[Path, IndexFile] = Recent(_NUM_OPEN)

    def __reduce__(self) -> tuple[type[Shards], tuple[Sequence[Path]]]:
        return Shards, (self._folders,)

    def all(self) -> list[Shard]:
        """Return the shards. Those that are damaged or of another version are removed, which is logged."""
        if self._shards is None:
            self._shards = []
            for folder in self._folders:
                for path in sorted(folder.glob("[!.]*")):
                    try:
                        self._shards.append(Shard(path, IndexFile(path).exact_keys))
                    except DAMAGE_ERRORS as error:
                        _remove_damaged(path, error)
        return self._shards

    def info(self, key: int, source: Source) -> VideoInfo | None:
        """Return the exact index of a source; None if no shard has it, or it is damaged.

        Args:
            key: The key of the source.
            source: The source.
        """
        for shard in self.all():
            if find_row(shard.exact_keys, key) is None:
                continue
            with suppress(*DAMAGE_ERRORS):
                file = self._open.get(shard.path)
                if file is None:
                    file = IndexFile(shard.path)
                    self._open.put(shard.path, file)
                info = file.info(key, source)
                if info is not None:
                    return info
        return None

    def infos(self) -> dict[int, VideoInfo]:
        """Return all exact indices by the keys of their files. Their source is no file.

        Damaged shards are removed, which is logged.
        """
        infos: dict[int, VideoInfo] = {}
        for shard in self.all():
            try:
                infos |= IndexFile(shard.path).infos(_NO_SOURCE)
            except DAMAGE_ERRORS as error:
                _remove_damaged(shard.path, error)
        return infos

    def exact_keys(self) -> NDArray[np.int64]:
        """Return the keys of the files with an exact index in a shard, sorted."""
        return np.unique(concatenate([shard.exact_keys for shard in self.all()], np.int64))

    def headers(self) -> SavedHeaders:
        """Return all headers. Shards that are damaged are left out."""
        keys = []
        headers = []
        for shard in self.all():
            with suppress(*DAMAGE_ERRORS):
                file = IndexFile(shard.path)
                keys_of_shard = file.column("key")
                headers.append(file.records(HEADER, len(keys_of_shard)))
                keys.append(keys_of_shard)
        return SavedHeaders.of(concatenate(keys, np.int64), concatenate(headers, HEADER))

    def write(self, headers: Mapping[int, Header], infos: Mapping[int, VideoInfo]) -> None:
        """Write headers and exact indices of files into a new shard.

        Args:
            headers: Headers by the keys of files.
            infos: Exact indices by the keys of files.

        Raises:
            OSError: the file cannot be written.
        """
        columns = columns_of_infos(list(infos), list(infos.values()))
        columns["key"] = np.array(list(headers), np.int64)
        columns |= columns_of_records(np.array(list(headers.values()), HEADER))
        text = f"{sorted(headers)} {sorted(infos)}"
        name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        folder = self._folders[0]
        remove_left(folder)
        save_tensors(folder / name, columns, {})


class ShardWriter:
    """Writes headers and exact indices into shards, now and then. Several threads may add to them.

    Args:
        shards: Where they are written.
        is_required: Whether an error of the system is raised. Otherwise it is logged once, and nothing more is written.
    """

    def __init__(self, shards: Shards, *, is_required: bool) -> None:
        self._shards = shards
        self._is_required = is_required
        self._can_write = True
        self._headers: dict[int, Header] = {}
        self._infos: dict[int, VideoInfo] = {}
        self._num_timestamps = 0
        self._last_write = time.monotonic()
        self._lock = threading.Lock()

    def add(self, key: int, header: Header | None, info: VideoInfo | None) -> None:
        """Add what was read of a file.

        Args:
            key: The key of the file.
            header: Its header, if it was read.
            info: Its exact index, if it was made.

        Raises:
            OSError: a shard cannot be written.
        """
        with self._lock:
            if header is not None:
                self._headers[key] = header
            if info is not None:
                self._infos[key] = info
                self._num_timestamps += info.num_frames
            num_files = max(len(self._headers), len(self._infos))
            is_full = num_files >= _FILES_PER_SHARD or self._num_timestamps >= _TIMESTAMPS_PER_SHARD
            if is_full or time.monotonic() - self._last_write >= _SECONDS_PER_SHARD:
                self._write()

    def write(self) -> None:
        """Write a shard with what was added since the last one, if anything was.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            self._write()

    def _write(self) -> None:
        headers = self._headers
        infos = self._infos
        self._headers = {}
        self._infos = {}
        self._num_timestamps = 0
        self._last_write = time.monotonic()
        if not self._can_write or not (headers or infos):
            return
        try:
            self._shards.write(headers, infos)
        except OSError as error:
            if self._is_required:
                raise
            self._can_write = False
            text = "the index cannot be saved, so the next run reads the data again: %s"
            logger.warning(text, error)


def _remove_damaged(path: Path, error: Exception) -> None:
    """Remove a damaged shard, unless the system cannot read it, and log it."""
    text = "%s is damaged or of another version of telecine (%s); indexing its files again"
    logger.warning(text, path, error)
    if not isinstance(error, OSError):
        with suppress(OSError):  # another process removes it, too
            path.unlink()
