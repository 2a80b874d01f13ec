"""What servers have said of files that lists name by their addresses, so that the next run does not ask again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from telecine.data.lazy.index_file import IndexFile, save_tensors
from telecine.data.lazy.sorted_numbers import concatenate, find_row
from telecine.data.lazy.string_column import StringColumn
from telecine.data.source import RemotePath


class SavedAddresses(NamedTuple):
    """Sizes and versions of single files, by the keys of their addresses, which are sorted."""

    keys: NDArray[np.int64]
    sizes: NDArray[np.int64]
    versions: StringColumn

    @classmethod
    def of(cls, files: Sequence[RemotePath]) -> SavedAddresses:
        """Return the sizes and versions of files, which they all have."""
        keys = np.array([_key_of_address(file.url) for file in files], np.int64)
        order = np.argsort(keys)
        sizes = np.array([files[row].size for row in order], np.int64)
        return cls(keys[order], sizes, StringColumn.of(files[row].version for row in order))

    @classmethod
    def joined(cls, parts: Sequence[SavedAddresses]) -> SavedAddresses:
        """Return what several say. Of an address that is in two, the first counts."""
        sizes = concatenate([part.sizes for part in parts], np.int64)
        versions = StringColumn.joined([part.versions for part in parts])
        keys = concatenate([part.keys for part in parts], np.int64)
        keys, rows = np.unique(keys, return_index=True)
        return cls(keys, sizes[rows], StringColumn.of(versions[row] for row in rows.tolist()))

    @classmethod
    def read(cls, path: Path) -> SavedAddresses:
        """Return what a file says.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged. So are the other errors of `DAMAGE_ERRORS`.
        """
        file = IndexFile(path)
        versions = StringColumn(file.column("version.content"), file.column("version.end"))
        return cls(file.column("key"), file.column("size"), versions)

    def write(self, path: Path) -> None:
        """Replace a file by these sizes and versions.

        Raises:
            OSError: it cannot be written.
        """
        columns: dict[str, NDArray[Any]] = {
            "key": self.keys,
            "size": self.sizes,
            "version.content": self.versions.content,
            "version.end": self.versions.ends,
        }
        save_tensors(path, columns, {})

    def find(self, file: RemotePath) -> RemotePath | None:
        """Return a file with its size and version; None if they are unknown."""
        row = find_row(self.keys, _key_of_address(file.url))
        if row is None:
            return None
        return RemotePath(file.url, int(self.sizes[row]), self.versions[row])


def _key_of_address(url: str) -> int:
    digest = hashlib.blake2b(url.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
