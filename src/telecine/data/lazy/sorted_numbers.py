"""Numbers of rows in arrays: which differ, which is first, and where one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def find_row(sorted_numbers: NDArray[np.integer[Any]], number: int) -> int | None:
    """Return where a number is in sorted ones; None if it is not there."""
    row = int(np.searchsorted(sorted_numbers, number))
    if row == len(sorted_numbers) or int(sorted_numbers[row]) != number:
        return None
    return row


def is_increasing(numbers: NDArray[np.integer[Any]]) -> bool:
    """Return whether each number is larger than the one before."""
    return bool((numbers[1:] > numbers[:-1]).all())


def distinct(numbers: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Return the different numbers, sorted. `numpy.unique` hashes them, which takes ten times as long for a million."""
    if is_increasing(numbers):
        return numbers
    in_order = np.sort(numbers)
    is_first = np.ones(len(in_order), np.bool_)
    is_first[1:] = in_order[1:] != in_order[:-1]
    return in_order[is_first]


def first_of_each(numbers: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return where each number is first, in the order of these places."""
    if is_increasing(numbers):
        return np.arange(len(numbers))
    _, places = np.unique(numbers, return_index=True)
    return np.sort(places)


def concatenate(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """Return arrays one after the other, of a type; there may be none."""
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
