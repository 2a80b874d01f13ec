"""Spans as columns, by the headers of their files; and functions of spans in a list or in a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from telecine.data.clip_frames import ClipFrames
from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.sorted_numbers import distinct
from telecine.data.lists import Segment
from telecine.data.source import Skipped, Source, Span, VideoInfo

_TOLERANCE = 1e-3  # frames


@dataclass(frozen=True)
class EstimatedSpan(Span):
    """A span whose frames are known by the header of its file alone; `exact_span` returns that of the indexed file."""

    segment: Segment | None = None
    """A part of a file that a list names; None for all of it."""


@dataclass(frozen=True)
class SpanTable(Sequence[EstimatedSpan]):
    """Spans by the headers of their files, one a row."""

    files: FileTable
    file: NDArray[np.integer[Any]]
    """The row of `files`."""
    first_frame: NDArray[np.integer[Any]]
    last_frame: NDArray[np.integer[Any]]
    """Inclusive."""
    group: NDArray[np.int32]
    """The index in `groups` of what the column of a list says, by which data is held out."""
    groups: tuple[str, ...]
    bounds: NDArray[np.float64] | None
    """Of segments: `start`, `end`, `start_frame` and `end_frame` in a row, NaN where one is left out."""

    @classmethod
    def of_segments(
        cls,
        files: FileTable,
        file: NDArray[np.int64],
        bounds: NDArray[np.float64] | None,
        group: NDArray[np.int32],
        groups: Sequence[str],
    ) -> SpanTable:
        """Return the spans of segments. Those without a frame have a last frame before the first.

        Args:
            files: The files.
            file: The row in `files` of each segment.
            bounds: See `SpanTable.bounds`, shape `(N, 4)`.
            group: See `SpanTable.group`.
            groups: See `SpanTable.groups`.
        """
        num_frames = files.headers["num_frames"][file]
        if bounds is None:
            first = np.zeros(len(file), np.int32)
            stop = num_frames.astype(np.int32)  # at most `MAX_FRAMES`
        else:
            fps = files.headers["fps"][file]
            start, end, start_frame, end_frame = bounds.T
            by_time = _frame_at(start, fps)
            first = np.where(np.isnan(start), np.nan_to_num(start_frame), by_time).astype(np.int64)
            ends = np.where(np.isnan(end), end_frame, _frame_at(end, fps))
            stop = np.fmin(ends, num_frames).astype(np.int64)
        return cls(
            files,
            file=file.astype(np.int32),
            first_frame=first,
            last_frame=stop - 1,
            group=group,
            groups=tuple(groups),
            bounds=bounds,
        )

    def __len__(self) -> int:
        return len(self.file)

    def __iter__(self) -> Iterator[EstimatedSpan]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> EstimatedSpan: ...
    @overload
    def __getitem__(self, index: slice) -> list[EstimatedSpan]: ...
    def __getitem__(self, index: int | slice) -> EstimatedSpan | list[EstimatedSpan]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        info = self.files.info(int(self.file[index]))
        return EstimatedSpan(
            info,
            int(self.first_frame[index]),
            int(self.last_frame[index]),
            self.groups[self.group[index]],
            segment=self._segment(info.source, index),
        )

    def _segment(self, source: Source, index: int) -> Segment | None:
        if self.bounds is None or np.isnan(self.bounds[index]).all():
            return None
        start, end, start_frame, end_frame = self.bounds[index].tolist()
        return Segment(
            source,
            start=None if np.isnan(start) else start,
            end=None if np.isnan(end) else end,
            start_frame=None if np.isnan(start_frame) else int(start_frame),
            end_frame=None if np.isnan(end_frame) else int(end_frame),
        )

    @property
    def is_image(self) -> NDArray[np.bool_]:
        """Whether the file of each span is an image."""
        return self.files.headers["is_image"][self.file]

    @property
    def num_frames(self) -> NDArray[np.integer[Any]]:
        """The number of frames of each span."""
        return self.last_frame - self.first_frame + 1

    def num_starts(self, frames: ClipFrames) -> NDArray[np.integer[Any]]:
        """Return the number of positions for a clip in each span, see `ClipFrames.num_starts`."""
        return frames.count_starts(self.num_frames, self.files.headers["fps"][self.file])

    def sha256(self) -> tuple[str, str]:
        """Return hashes of the names, sizes and frames of the files, and of what their headers say.

        A file whose header was not read counts by its time of change or version. Of a mapped table, only a part is in
        memory at once.
        """
        rows = distinct(self.file)
        files = sha256()
        for names in self.files.names.file_names(rows):
            files.update(names)
        self.files.release_pages()
        files.update(self.files.locations["size"][rows].tobytes())
        self.files.release_pages()
        for column in (np.searchsorted(rows, self.file), self.first_frame, self.last_frame):
            files.update(np.ascontiguousarray(column, np.int64).tobytes())
        digests = self.files.headers["digest"][rows]
        content = sha256(digests.tobytes())
        self.files.release_pages()
        for row in rows[digests == 0].tolist():
            content.update(f"{self.files.versions[row]}\n".encode("utf-8", "surrogateescape"))
        return files.hexdigest(), content.hexdigest()

    def take(self, rows: NDArray[Any]) -> SpanTable:
        """Return the spans at indices, or where a mask is true; of the same table of files."""
        if rows.dtype == np.bool_ and rows.all():
            return self
        return SpanTable(
            self.files,
            file=self.file[rows],
            first_frame=self.first_frame[rows],
            last_frame=self.last_frame[rows],
            group=self.group[rows],
            groups=self.groups,
            bounds=None if self.bounds is None else self.bounds[rows],
        )


def exact_span(span: EstimatedSpan, info: VideoInfo) -> Span | Skipped:
    """Return the frames of a span in the indexed file, or why there are none."""
    if span.segment is None:
        return Span(info, 0, info.num_frames - 1, span.group)
    return span.segment.as_span(info)


def select(spans: Sequence[Span], rows: NDArray[np.integer[Any]]) -> Sequence[Span]:
    """Return the spans at indices; of a table as a table."""
    if isinstance(spans, SpanTable):
        return spans.take(rows)
    return [spans[row] for row in rows.tolist()]


def are_images(spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Return for each span whether its file is an image."""
    if isinstance(spans, SpanTable):
        return spans.is_image
    return np.array([span.info.is_image for span in spans], np.bool_)


def file_numbers(spans: Sequence[Span]) -> NDArray[np.integer[Any]]:
    """Return a number for each span, equal for spans of one file."""
    if isinstance(spans, SpanTable):
        return spans.file
    numbers: dict[Source, int] = {}
    rows = [numbers.setdefault(span.info.source, len(numbers)) for span in spans]
    return np.array(rows, np.int64)


def count_starts(spans: Sequence[Span], frames: ClipFrames) -> NDArray[np.integer[Any]]:
    """Return the number of positions for a clip in each span."""
    if isinstance(spans, SpanTable):
        return spans.num_starts(frames)
    return np.array([frames.num_starts(span) for span in spans], np.int64)


def _frame_at(seconds: NDArray[np.float64], fps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the index of the first frame at or after each time, where frames are evenly spaced."""
    return np.ceil(seconds * fps - _TOLERANCE)
