"""Segments as columns, while a data set is read."""

import math
from array import array

import numpy as np
from numpy.typing import NDArray

from telecine.data.lazy.file_table import FileTable
from telecine.data.lists import Segment
from telecine.data.span_table import SpanTable


class SegmentColumns:
    """Segments of the files of a table, in their order."""

    def __init__(self) -> None:
        self._rows = array("q")  # of their files
        self._bounds = array("d")  # four of each segment; empty as long as no segment has one
        self._groups = array("i")
        self._group_names: dict[str, int] = {"": 0}

    def add(self, segment: Segment, row: int) -> None:
        """Add a segment of the file in a row."""
        bounds = [segment.start, segment.end, segment.start_frame, segment.end_frame]
        has_bounds = bounds.count(None) < len(bounds)
        if has_bounds and not self._bounds:
            self._bounds = array("d", [math.nan]) * (len(bounds) * len(self._rows))
        self._rows.append(row)
        if has_bounds or self._bounds:
            self._bounds.extend(math.nan if bound is None else bound for bound in bounds)
        self._groups.append(self._group_names.setdefault(segment.group, len(self._group_names)))

    def add_files(self, rows: range) -> None:
        """Add a segment for all of each file in some rows."""
        self._rows.frombytes(np.arange(rows.start, rows.stop, dtype=np.int64).tobytes())
        self._groups.extend(array("i", [0]) * len(rows))
        if self._bounds:
            self._bounds.extend(array("d", [math.nan]) * (4 * len(rows)))

    def spans(self, files: FileTable, first_rows: NDArray[np.int64]) -> SpanTable:
        """Return the spans of all segments.

        Args:
            files: The files.
            first_rows: For each row of files, the first one of the same file.
        """
        file = first_rows[np.array(self._rows, np.int64)]
        bounds = None
        if self._bounds:
            bounds = np.array(self._bounds, np.float64).reshape(len(file), 4)
        group = np.array(self._groups, np.int32)
        return SpanTable.of_segments(files, file, bounds, group, list(self._group_names))
