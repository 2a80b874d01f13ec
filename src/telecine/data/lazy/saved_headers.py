"""Headers that earlier runs, and `telecine data index`, have read, in shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from telecine.data.lazy.header import HEADER, NO_HEADER
from telecine.data.lazy.index_file import DAMAGE_ERRORS, IndexFile


class SavedHeaders(NamedTuple):
    """Headers by their keys, which are sorted."""

    keys: NDArray[np.int64]
    headers: NDArray[Any]
    """Of type `HEADER`."""

    @classmethod
    def of(cls, keys: NDArray[np.int64], headers: NDArray[Any]) -> SavedHeaders:
        """Return headers of files. Of a key that is in it twice, the first header counts.

        Args:
            keys: The key of each file.
            headers: The header of each file, of type `HEADER`.
        """
        keys, rows = np.unique(keys, return_index=True)
        return cls(keys, headers[rows])

    @classmethod
    def read(cls, paths: Iterable[Path]) -> SavedHeaders:
        """Return the headers in files; those that are damaged are left out."""
        all_keys = [np.empty(0, np.int64)]
        all_headers = [np.empty(0, HEADER)]
        for path in paths:
            try:
                file = IndexFile(path)
                keys = file.column("key")
                headers = file.records(HEADER, len(keys))
            except DAMAGE_ERRORS:
                continue
            all_keys.append(keys)
            all_headers.append(headers)
        return cls.of(np.concatenate(all_keys), np.concatenate(all_headers))

    def find(self, keys: NDArray[np.int64]) -> NDArray[Any]:
        """Return the headers of keys; `NO_HEADER` where they are unknown."""
        headers = np.full(len(keys), np.array(tuple(NO_HEADER), HEADER))
        if len(self.keys) > 0:
            rows = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
            is_known = self.keys[rows] == keys
            headers[is_known] = self.headers[rows[is_known]]
        return headers
