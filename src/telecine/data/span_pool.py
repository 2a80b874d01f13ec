"""Spans that are long enough for a clip, and draws of a position in them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from telecine.base.checks import argument_error
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.lazy.span_table import count_starts, file_numbers, select
from telecine.data.source import Span


class SpanPool:
    """The spans that are long enough for a clip. All positions of a clip in them are equally likely.

    All positions, one span after the other, are divided into `num_parts` parts of one size. An epoch draws each once.
    With `weighting` "files", all files are equally likely, and then all positions of a clip in the file: a part is a
    file.

    Args:
        spans: The spans of a data set.
        candidates: The indices of those that count.
        frames: The frames of a clip.
        weighting: See `ClipConfig.weighting`.

    Raises:
        DataError: no span is long enough.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        candidates: NDArray[np.int64],
        frames: ClipFrames,
        weighting: str = "frames",
    ) -> None:
        num_starts = count_starts(select(spans, candidates), frames)
        rows = candidates[num_starts > 0].astype(np.int32)
        num_starts = num_starts[num_starts > 0]
        if len(rows) == 0:
            contract = f"at least one span with a {frames.describe()}, {frames.rule()}"
            remedy = "Use fewer frames or a smaller stride."
            got = f"{len(candidates)} shorter ones"
            raise argument_error("spans", contract, got, remedy, DataError)
        self._spans = spans
        self._part_ends: NDArray[np.int64] | None = None
        if weighting == "files":
            files = file_numbers(select(spans, rows))
            _, first_places, numbers = np.unique(files, return_index=True, return_inverse=True)
            in_order = np.argsort(first_places[numbers], kind="stable")
            rows = rows[in_order]
            num_starts = num_starts[in_order]
            is_last = np.append(np.diff(files[in_order]) != 0, True)
            self._part_ends = np.cumsum(num_starts)[is_last]
        self.rows = rows
        """The indices of the spans that are long enough."""
        self._ends = np.cumsum(num_starts)

    @property
    def num_parts(self) -> int:
        """The number of clips in an epoch: that of spans, or of files."""
        return len(self.rows) if self._part_ends is None else len(self._part_ends)

    def draw(self, generator: torch.Generator, part: int | None = None) -> tuple[Span, int]:
        """Draw a span and the index of a clip's first frame in its video.

        Args:
            generator: The source of random numbers.
            part: The part to draw from; by default all.
        """
        first = 0
        end = int(self._ends[-1])
        if self._part_ends is not None:
            if part is None:
                part = int(torch.randint(self.num_parts, (), generator=generator))
            first = int(self._part_ends[part - 1]) if part > 0 else 0
            end = int(self._part_ends[part])
        elif part is not None:
            first = part * int(self._ends[-1]) // self.num_parts
            end = (part + 1) * int(self._ends[-1]) // self.num_parts
        position = first + int(torch.randint(end - first, (), generator=generator))
        place = int(np.searchsorted(self._ends, position, side="right"))
        begin = int(self._ends[place - 1]) if place > 0 else 0
        span = self._spans[int(self.rows[place])]
        return span, span.first_frame + position - begin
