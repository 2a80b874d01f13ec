"""Headers that earlier runs, and `telecine data index`, have read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from telecine.data.lazy.header import HEADER, NO_HEADER


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

    def find(self, keys: NDArray[np.int64]) -> NDArray[Any]:
        """Return the headers of keys; `NO_HEADER` where they are unknown."""
        headers = np.full(len(keys), np.array(tuple(NO_HEADER), HEADER))
        if len(self.keys) > 0:
            rows = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
            is_known = self.keys[rows] == keys
            headers[is_known] = self.headers[rows[is_known]]
        return headers
