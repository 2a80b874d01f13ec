"""Spans that are long enough for a clip, and draws of a position in them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from telecine.base.checks import argument_error
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.lazy.span_table import count_starts, file_numbers, select
from telecine.data.source import Span


class SpanPool(ABC):
    """Spans that are long enough for a clip. The positions of a clip in them are numbered, one span after the other.

    The numbers are divided into parts. An epoch draws a clip from each.

    Args:
        spans: The spans of a data set.
        rows: The indices of those that are long enough.
        num_starts: The number of positions of a clip in each of these.
    """

    def __init__(
        self, spans: Sequence[Span], rows: NDArray[np.int32], num_starts: NDArray[np.integer[Any]]
    ) -> None:
        self.rows = rows
        """The indices of the spans that are long enough."""
        self._spans = spans
        self._ends = np.cumsum(num_starts)  # of the positions in each span

    @property
    @abstractmethod
    def num_parts(self) -> int:
        """The number of clips in an epoch."""

    @abstractmethod
    def range_of_part(self, part: int) -> range:
        """Return the positions in a part."""

    @abstractmethod
    def draw_range(self, generator: torch.Generator) -> range:
        """Return the positions from which a clip that is no part of an epoch is drawn."""

    def draw(self, generator: torch.Generator, part: int | None = None) -> tuple[Span, int]:
        """Draw a span and the index of a clip's first frame in its video.

        Args:
            generator: The source of random numbers.
            part: The part to draw from; by default all.
        """
        positions = self.draw_range(generator) if part is None else self.range_of_part(part)
        offset = int(torch.randint(len(positions), (), generator=generator))
        position = positions.start + offset
        place = int(np.searchsorted(self._ends, position, side="right"))
        begin = int(self._ends[place - 1]) if place > 0 else 0
        span = self._spans[int(self.rows[place])]
        return span, span.first_frame + position - begin


class FramePool(SpanPool):
    """All positions are equally likely. There are as many parts as spans, whose numbers of positions differ by one."""

    @property
    def num_parts(self) -> int:
        """The number of spans."""
        return len(self.rows)

    def range_of_part(self, part: int) -> range:
        """Return the positions in a part."""
        num_positions = int(self._ends[-1])
        first = part * num_positions // self.num_parts
        return range(first, (part + 1) * num_positions // self.num_parts)

    def draw_range(self, generator: torch.Generator) -> range:
        """Return all positions."""
        return range(int(self._ends[-1]))


class FilePool(SpanPool):
    """All files are equally likely, and then all positions in the file. A part is a file.

    Args:
        spans: The spans of a data set.
        rows: The indices of those that are long enough.
        num_starts: The number of positions of a clip in each of these.
    """

    def __init__(
        self, spans: Sequence[Span], rows: NDArray[np.int32], num_starts: NDArray[np.integer[Any]]
    ) -> None:
        files = file_numbers(select(spans, rows))
        _, first_places, numbers = np.unique(files, return_index=True, return_inverse=True)
        in_order = np.argsort(first_places[numbers], kind="stable")
        super().__init__(spans, rows[in_order], num_starts[in_order])
        is_last = np.append(np.diff(files[in_order]) != 0, True)
        self._part_ends = self._ends[is_last]

    @property
    def num_parts(self) -> int:
        """The number of files."""
        return len(self._part_ends)

    def range_of_part(self, part: int) -> range:
        """Return the positions in a file."""
        first = int(self._part_ends[part - 1]) if part > 0 else 0
        return range(first, int(self._part_ends[part]))

    def draw_range(self, generator: torch.Generator) -> range:
        """Draw a file, and return the positions in it."""
        return self.range_of_part(int(torch.randint(self.num_parts, (), generator=generator)))


_POOLS: dict[str, type[SpanPool]] = {"frames": FramePool, "files": FilePool}


def build_pool(
    spans: Sequence[Span],
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
    num_starts = count_starts(select(spans, candidates), frames)
    rows = candidates[num_starts > 0].astype(np.int32)
    if len(rows) == 0:
        contract = f"at least one span with a {frames.describe()}, {frames.rule()}"
        remedy = "Use fewer frames or a smaller stride."
        got = f"{len(candidates)} shorter ones"
        raise argument_error("spans", contract, got, remedy, DataError)
    return _POOLS[weighting](spans, rows, num_starts[num_starts > 0])
