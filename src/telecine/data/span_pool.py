"""Spans that are long enough for a clip, and draws of a position in them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from telecine.base.checks import argument_error
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.source import Span
from telecine.data.span_table import EstimatedSpan, SpanTable


class Position(NamedTuple):
    """A position of a clip in a span."""

    span: Span | EstimatedSpan
    offset: int  # of the first frame, from that of the span
    num_positions: int  # of a clip in the span
    file: int  # the row of its file in the table of files


class SpanPool:
    """Spans that are long enough for a clip. The positions of a clip in them are numbered, one span after the other.

    The numbers are divided into parts, of which an epoch draws a clip from each. By frames, all positions are equally
    likely, and there are as many parts as spans: parts of equal size, or of sizes that differ by one. By files, all
    files are equally likely, and then all positions in the file: a part is a file.

    Args:
        spans: The spans of a data set.
        rows: The indices of those that are long enough.
        num_starts: The number of positions of a clip in each of these.
        weighting: "frames" or "files".
    """

    def __init__(
        self,
        spans: SpanTable,
        rows: NDArray[np.int32],
        num_starts: NDArray[np.integer[Any]],
        weighting: str,
    ) -> None:
        self._spans = spans
        self._file_ends: NDArray[np.integer[Any]] | None = None  # of the positions in each file
        if weighting == "files":
            files = spans.file[rows]
            _, first_places, numbers = np.unique(files, return_index=True, return_inverse=True)
            in_order = np.argsort(first_places[numbers], kind="stable")
            rows = rows[in_order]
            num_starts = num_starts[in_order]
            is_last = np.append(np.diff(files[in_order]) != 0, True)
            self._file_ends = np.cumsum(num_starts)[is_last]
        self.rows = rows
        """The indices of the spans that are long enough."""
        self._ends = np.cumsum(num_starts)  # of the positions in each span

    @property
    def num_parts(self) -> int:
        """The number of clips in an epoch."""
        return len(self.rows) if self._file_ends is None else len(self._file_ends)

    def draw(self, generator: torch.Generator, part: int | None = None) -> Position:
        """Draw a position.

        Args:
            generator: The source of random numbers.
            part: The part to draw from; by default all.
        """
        if part is None and self._file_ends is not None:
            part = int(torch.randint(self.num_parts, (), generator=generator))
        positions = self._positions(part)
        offset = int(torch.randint(len(positions), (), generator=generator))
        position = positions.start + offset
        place = int(np.searchsorted(self._ends, position, side="right"))
        begin = int(self._ends[place - 1]) if place > 0 else 0
        row = int(self.rows[place])
        return Position(
            self._spans[row],
            offset=position - begin,
            num_positions=int(self._ends[place]) - begin,
            file=int(self._spans.file[row]),
        )

    def _positions(self, part: int | None) -> range:
        """Return the positions in a part; with None, all."""
        num_positions = int(self._ends[-1])
        if part is None:
            return range(num_positions)
        if self._file_ends is None:
            first = part * num_positions // self.num_parts
            return range(first, (part + 1) * num_positions // self.num_parts)
        first = int(self._file_ends[part - 1]) if part > 0 else 0
        return range(first, int(self._file_ends[part]))


def build_pool(
    spans: SpanTable,
    candidates: NDArray[np.int64],
    frames: ClipFrames,
    weighting: str = "frames",
) -> SpanPool:
    """Return the spans that are long enough for a clip.

    Args:
        spans: The spans of a data set.
        candidates: The indices of those that count.
        frames: The frames of a clip.
        weighting: See `ClipConfig.weighting`.

    Raises:
        DataError: no span is long enough.
    """
    num_starts = spans.take(candidates).num_starts(frames)
    rows = candidates[num_starts > 0].astype(np.int32)
    if len(rows) == 0:
        contract = f"at least one span with a {frames.describe()}, {frames.rule()}"
        remedy = "Use fewer frames or a smaller stride."
        got = f"{len(candidates)} shorter ones"
        raise argument_error("spans", contract, got, remedy, DataError)
    return SpanPool(spans, rows, num_starts[num_starts > 0], weighting)
