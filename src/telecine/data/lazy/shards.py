"""Shards: files with headers, exact indices, or both, of many files each."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from telecine.data.lazy.index_file import (
    DAMAGE_ERRORS,
    IndexFile,
    columns_of_infos,
    remove_left,
    save_tensors,
)
from telecine.data.lazy.recent import Recent
from telecine.data.lazy.saved_headers import SavedHeaders
from telecine.data.lazy.sorted_numbers import concatenate, find_row
from telecine.data.source import Source, VideoInfo

logger = logging.getLogger(__name__)

_NUM_OPEN = 64  # shards that a process keeps open


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
                        text = "%s is damaged or of another version of telecine (%s); what it has is read again"
                        logger.warning(text, path, error)
                        if not isinstance(error, OSError):
                            with suppress(OSError):  # another process removes it, too
                                path.unlink()
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

    def exact_keys(self) -> NDArray[np.int64]:
        """Return the keys of the files with an exact index in a shard, sorted."""
        return np.unique(concatenate([shard.exact_keys for shard in self.all()], np.int64))

    def header_keys(self) -> NDArray[np.int64]:
        """Return the keys of the files with a header in a shard, sorted."""
        keys = []
        for shard in self.all():
            with suppress(*DAMAGE_ERRORS):
                keys.append(IndexFile(shard.path).column("key"))
        return np.unique(concatenate(keys, np.int64))

    def write(
        self, keys: NDArray[np.int64], headers: NDArray[Any], infos: Mapping[int, VideoInfo]
    ) -> None:
        """Write the headers and exact indices of many files into a new shard.

        Args:
            keys: The key of each file.
            headers: The header of each file, of type `HEADER`.
            infos: Exact indices by key. Files that cannot be decoded have none.

        Raises:
            OSError: the file cannot be written.
        """
        columns = columns_of_infos(list(infos), list(infos.values()))
        columns |= SavedHeaders.of(keys, headers).columns()
        names = columns["key"].tobytes() + columns["exact.key"].tobytes()
        name = hashlib.blake2b(names, digest_size=8).hexdigest()
        folder = self._folders[0]
        remove_left(folder)
        save_tensors(folder / name, columns, {})
