"""Strings as one column of bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from telecine.data.lazy.sorted_numbers import concatenate

_NUM_AT_ONCE = 2**16  # texts


class StringColumn(Sequence[str]):
    """Many short texts, in one array of bytes."""

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.content = content
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> StringColumn:
        """Return a copy of texts. Bytes of paths that are not UTF-8 are kept."""
        content = bytearray()
        ends = array("q")
        for text in texts:
            content += text.encode("utf-8", "surrogateescape")
            ends.append(len(content))
        return cls(np.frombuffer(bytes(content), np.uint8), np.array(ends, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[StringColumn]) -> StringColumn:
        """Return the texts of several, one after the other."""
        ends = []
        begin = 0
        for part in parts:
            ends.append(part.ends + begin)
            begin += len(part.content)
        contents = [part.content for part in parts]
        return cls(concatenate(contents, np.uint8), concatenate(ends, np.int64))

    @classmethod
    def empty(cls, count: int) -> StringColumn:
        """Return empty texts. They take no memory."""
        return cls(np.empty(0, np.uint8), np.broadcast_to(np.int64(0), count))

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        content = self.content.tobytes()
        begin = 0
        for end in self.ends.tolist():
            yield content[begin:end].decode("utf-8", "surrogateescape")
            begin = end

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        begin = self.ends[index - 1] if index > 0 else 0
        text = self.content[begin : self.ends[index]].tobytes()
        return text.decode("utf-8", "surrogateescape")

    def file_names(self, rows: NDArray[np.integer[Any]]) -> Iterator[bytes]:
        """Yield what follows the last slash of paths, with a newline after each path; some thousands at a time.

        Args:
            rows: The indices of the paths.
        """
        slashes = np.flatnonzero(self.content == ord("/"))
        for start in range(0, len(rows), _NUM_AT_ONCE):
            part = rows[start : start + _NUM_AT_ONCE]
            ends = self.ends[part]
            begins = np.where(part > 0, self.ends[part - 1], 0)
            if len(slashes) > 0:
                last = np.searchsorted(slashes, ends) - 1
                after_slash = np.where(last >= 0, slashes[last] + 1, 0)
                begins = np.maximum(begins, after_slash)
            lengths = ends - begins
            line_ends = np.cumsum(lengths + 1)
            lines = np.full(line_ends[-1], ord("\n"), np.uint8)
            is_name = np.ones(len(lines), np.bool_)
            is_name[line_ends - 1] = False
            shifts = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
            lines[is_name] = self.content[np.arange(len(shifts)) + shifts]
            yield lines.tobytes()
