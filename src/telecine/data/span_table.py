"""Spans as columns, of indexed files or by the headers of files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from telecine.base.checks import first_few
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DecodeError
from telecine.data.fingerprint import num_bytes
from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lazy.sorted_numbers import distinct
from telecine.data.lists import Segment
from telecine.data.source import Skipped, Source, Span, VideoInfo

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # frames


@dataclass(frozen=True)
class EstimatedSpan:
    """Consecutive frames of a file, as far as its header tells."""

    segment: Segment
    first_frame: int
    last_frame: int  # inclusive

    @property
    def source(self) -> Source:
        """The file."""
        return self.segment.source

    @property
    def num_frames(self) -> int:
        """Number of frames; 0 or less if the range is empty."""
        return self.last_frame - self.first_frame + 1

    def index(self, saved_index: SavedIndex, frames: ClipFrames) -> Span:
        """Return the frames of the span in its file, which is indexed.

        Args:
            saved_index: Has or makes the index of the file.
            frames: The frames of a clip.

        Raises:
            DecodeError: the file cannot be indexed, or the span is too short for a clip.
        """
        info = saved_index.info(self.source)
        span = self.segment.as_span(info)
        if isinstance(span, Skipped):
            raise DecodeError(f"{span.path}: {span.reason}")
        if not frames.fits(span):
            raise DecodeError(f"{self.source}: {span.num_frames} frames, too few for a clip")
        return span


@dataclass(frozen=True)
class SpanTable(Sequence[Span | EstimatedSpan]):
    """Spans, one a row: exact ones of indexed files, or estimated ones, by the headers of files."""

    files: FileTable
    file: NDArray[np.integer[Any]]
    """The row of `files`."""
    first_frame: NDArray[np.integer[Any]]
    last_frame: NDArray[np.integer[Any]]
    """Inclusive."""
    group: NDArray[np.int32]
    """The index in `groups` of what the column of a list says, by which data is held out."""
    groups: tuple[str, ...]
    bounds: NDArray[np.float64] | None = None
    """Of estimated spans of segments: `start`, `end`, `start_frame` and `end_frame` in a row, NaN where one is left
    out."""
    infos: Sequence[VideoInfo] | None = None
    """The index of each row of `files`; None if the spans are estimated."""
    first_rows: NDArray[np.int64] | None = None
    """Of indexed files: for each row of `files`, the first row of the same file, which may have several names."""

    @classmethod
    def of(cls, spans: Sequence[Span] | SpanTable) -> SpanTable:
        """Return spans of indexed files as a table, and a table as it is."""
        if isinstance(spans, SpanTable):
            return spans
        infos: dict[Source, VideoInfo] = {}
        for span in spans:
            infos.setdefault(span.info.source, span.info)
        row_of = {source: row for row, source in enumerate(infos)}
        files = FileTable.of_infos(list(infos.values()))
        ids = files.process_local_ids(np.arange(len(files)))
        _, first_places, codes = np.unique(ids, return_index=True, return_inverse=True)
        groups: dict[str, int] = {"": 0}
        group = [groups.setdefault(span.group, len(groups)) for span in spans]
        return cls(
            files,
            file=np.array([row_of[span.info.source] for span in spans], np.int32),
            first_frame=np.array([span.first_frame for span in spans], np.int64),
            last_frame=np.array([span.last_frame for span in spans], np.int64),
            group=np.array(group, np.int32),
            groups=tuple(groups),
            infos=list(infos.values()),
            first_rows=first_places[codes],
        )

    @classmethod
    def joined(cls, parts: Sequence[SpanTable]) -> SpanTable:
        """Return the spans of several parts of one table, one after the other."""
        if len(parts) == 1:
            return parts[0]
        bounds = None
        if parts[0].bounds is not None:
            bounds = np.concatenate([part.bounds for part in parts if part.bounds is not None])
        return replace(
            parts[0],
            file=np.concatenate([part.file for part in parts]),
            first_frame=np.concatenate([part.first_frame for part in parts]),
            last_frame=np.concatenate([part.last_frame for part in parts]),
            group=np.concatenate([part.group for part in parts]),
            bounds=bounds,
        )

    @classmethod
    def of_segments(
        cls,
        files: FileTable,
        file: NDArray[np.int64],
        bounds: NDArray[np.float64] | None,
        group: NDArray[np.int32],
        groups: Sequence[str],
    ) -> SpanTable:
        """Return the estimated spans of segments. Those without a frame have a last frame before the first.

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

    def __iter__(self) -> Iterator[Span | EstimatedSpan]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Span | EstimatedSpan: ...
    @overload
    def __getitem__(self, index: slice) -> list[Span | EstimatedSpan]: ...
    def __getitem__(self, index: int | slice) -> Span | EstimatedSpan | list[Span | EstimatedSpan]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if self.infos is None:
            return self.estimated(index)
        return self.exact_span(index)

    @property
    def exact(self) -> list[Span]:
        """The spans, all of indexed files."""
        return [self.exact_span(row) for row in range(len(self))]

    def exact_span(self, row: int) -> Span:
        """Return the span in a row, of an indexed file."""
        assert self.infos is not None
        return Span(
            self.infos[self.file[row]],
            first_frame=int(self.first_frame[row]),
            last_frame=int(self.last_frame[row]),
            group=self.groups[self.group[row]],
        )

    def estimated(self, row: int) -> EstimatedSpan:
        """Return the estimated span in a row."""
        return EstimatedSpan(
            self._segment(row), int(self.first_frame[row]), int(self.last_frame[row])
        )

    def _segment(self, row: int) -> Segment:
        source = self.files[int(self.file[row])]
        group = self.groups[self.group[row]]
        if self.bounds is None:
            return Segment(source, group=group)
        start, end, start_frame, end_frame = self.bounds[row].tolist()
        return Segment(
            source,
            start=None if np.isnan(start) else start,
            end=None if np.isnan(end) else end,
            start_frame=None if np.isnan(start_frame) else int(start_frame),
            end_frame=None if np.isnan(end_frame) else int(end_frame),
            group=group,
        )

    @property
    def is_image(self) -> NDArray[np.bool_]:
        """Whether the file of each span is an image."""
        return self.files.headers["is_image"][self.file]

    @property
    def num_frames(self) -> NDArray[np.integer[Any]]:
        """The number of frames of each span."""
        return self.last_frame - self.first_frame + 1

    @property
    def real_file(self) -> NDArray[np.integer[Any]]:
        """A row of `files` for each span, equal for spans of one file; of an indexed file, under all its names."""
        if self.first_rows is None:
            return self.file
        return self.first_rows[self.file]

    def num_starts(self, frames: ClipFrames) -> NDArray[np.integer[Any]]:
        """Return the number of positions for a clip in each span, see `ClipFrames.num_starts`."""
        if self.infos is not None and frames.fps is not None:
            return np.array([frames.num_starts(span) for span in self.exact], np.int64)
        return frames.count_starts(self.num_frames, self.files.headers["fps"][self.file])

    def log_too_short(self, frames: ClipFrames) -> int:
        """Log and count the videos that have no span with a clip, because it is too short or its frames too slow."""
        is_video = np.zeros(len(self.files), np.bool_)
        is_video[self.file] = ~self.is_image
        is_short = is_video.copy()
        is_short[self.file[self.num_starts(frames) > 0]] = False
        short = np.flatnonzero(is_short)
        if len(short) == 0:
            return 0
        longest = np.zeros(len(self.files), np.int64)
        np.maximum.at(longest, self.file, self.num_frames)
        texts = []
        for row, path in zip(short.tolist(), self.files.paths(short), strict=True):
            reason = f"{longest[row]} frames"
            fps = self.files.headers["fps"][row]
            if fps < frames.min_fps:
                reason = f"{fps:.3g} frames a second"
            texts.append(f"{path} ({reason})")
        text = "%d of %d files have no %s, and are not used: %s"
        num_videos = int(is_video.sum())
        logger.warning(text, len(short), num_videos, frames.describe(), first_few(texts))
        return len(short)

    def sha256(self) -> tuple[str, str]:
        """Return hashes of the names, sizes and frames of the files, and of their content.

        A run that resumes compares them with those that it has recorded. Those of indexed files and of headers differ.
        """
        if self.infos is not None:
            return _digest_exact(self.exact)
        return self._digest_headers()

    def _digest_headers(self) -> tuple[str, str]:
        """Return the hashes of estimated spans; of the content, what headers say.

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
        if rows.dtype == np.bool_:
            if rows.all():
                return self
            rows = np.flatnonzero(rows)
        return replace(
            self,
            file=self.file[rows],
            first_frame=self.first_frame[rows],
            last_frame=self.last_frame[rows],
            group=self.group[rows],
            bounds=None if self.bounds is None else self.bounds[rows],
        )

    def cut(self, parts: Sequence[tuple[int, Span]]) -> SpanTable:
        """Return a table of parts of exact spans.

        Args:
            parts: The row of the whole span, and the part.
        """
        rows = np.array([row for row, _ in parts], np.int64)
        spans = [span for _, span in parts]
        return replace(
            self,
            file=self.file[rows],
            first_frame=np.array([span.first_frame for span in spans], np.int64),
            last_frame=np.array([span.last_frame for span in spans], np.int64),
            group=self.group[rows],
        )


def _digest_exact(spans: Sequence[Span]) -> tuple[str, str]:
    """Return the hashes of exact spans, see `SpanTable.sha256`."""
    sizes = {source: num_bytes(source) for source in {span.info.source for span in spans}}
    files = sha256()
    content = sha256()
    for span in spans:
        source = span.info.source
        place = (source.name, sizes[source], span.first_frame, span.last_frame)
        files.update(repr(place).encode())
        content.update(f"{span.info.digest}\n".encode())
    return files.hexdigest(), content.hexdigest()


def _frame_at(seconds: NDArray[np.float64], fps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the index of the first frame at or after each time, where frames are evenly spaced."""
    return np.ceil(seconds * fps - _TOLERANCE)
