"""Files and spans as columns: a million of them take about a hundred bytes each, and no object."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import compress
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from telecine.data.clip_frames import ClipFrames
from telecine.data.header import Header
from telecine.data.lists import Segment
from telecine.data.paths import real_paths
from telecine.data.source import (
    File,
    RemotePath,
    Skipped,
    Source,
    Span,
    TarMember,
    VideoInfo,
    is_address,
)

_NO_ARCHIVE = -1
_TOLERANCE = 1e-3  # frames
_NUM_AT_ONCE = 2**16  # texts
_ODD_NUMBER = 0x9E3779B97F4A7C15  # so that keys of members differ in all bits
_MAX_KEY = 2**63 - 1
# What a row has of each field of `Header`.
HEADER = np.dtype(
    [
        ("num_frames", np.int64),
        ("fps", np.float64),
        ("width", np.int32),
        ("height", np.int32),
        ("is_image", np.bool_),
        ("digest", np.int64),
    ]
)
# The size of a file, -1 if it is not known; of a member of a tar file, the number of the tar file, and the first byte.
PLACE = np.dtype([("size", np.int64), ("archive", np.int32), ("offset", np.int64)])


class Texts(Sequence[str]):
    """Many short texts, in one array of bytes."""

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.content = content
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Return a copy of texts. Bytes of paths that are not UTF-8 are kept."""
        content = bytearray()
        ends = array("q")
        for text in texts:
            content += text.encode("utf-8", "surrogateescape")
            ends.append(len(content))
        return cls(np.frombuffer(bytes(content), np.uint8), np.array(ends, np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """Return the texts of several, one after the other."""
        ends = []
        begin = 0
        for part in parts:
            ends.append(part.ends + begin)
            begin += len(part.content)
        contents = [part.content for part in parts]
        return cls(_joined(contents, np.uint8), _joined(ends, np.int64))

    @classmethod
    def empty(cls, count: int) -> Texts:
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


@dataclass(frozen=True)
class FileTable(Sequence[Source]):
    """The files of a data set, one a row, with what their headers say."""

    names: Texts
    """The path or the address of a file, or the name of a member of a tar file."""
    versions: Texts
    """The version of a file at an address; the time of change of a local file in ns; empty for members."""
    places: NDArray[Any]
    """The size of each file in bytes, and where a member is, of type `PLACE`."""
    archives: tuple[File, ...]
    headers: NDArray[Any]
    """Of type `HEADER`."""

    @classmethod
    def of(
        cls, sources: Iterable[Source], versions: Iterable[str], headers: NDArray[Any]
    ) -> FileTable:
        """Return a table of sources.

        Args:
            sources: Files, addresses, and members of tar files.
            versions: The version of each, see `FileTable.versions`.
            headers: What the headers say, of type `HEADER`.
        """
        archives: dict[File, int] = {}
        names = []
        places = np.zeros(len(headers), PLACE)
        for row, source in enumerate(sources):
            if isinstance(source, TarMember):
                names.append(source.name)
                archive = archives.setdefault(source.archive, len(archives))
                places[row] = (source.size, archive, source.offset)
            else:
                names.append(str(source))
                size = source.size if isinstance(source, RemotePath) else source.stat().st_size
                places[row] = (-1 if size is None else size, _NO_ARCHIVE, 0)
        return cls(Texts.of(names), Texts.of(versions), places, tuple(archives), headers)

    @classmethod
    def joined(cls, parts: Sequence[FileTable]) -> FileTable:
        """Return the files of several tables, one after the other."""
        if len(parts) == 1:
            return parts[0]
        archives: list[File] = []
        places = []
        for part in parts:
            moved = part.places.copy()
            moved["archive"][moved["archive"] >= 0] += len(archives)
            places.append(moved)
            archives.extend(part.archives)
        return cls(
            names=Texts.joined([part.names for part in parts]),
            versions=Texts.joined([part.versions for part in parts]),
            places=_joined(places, PLACE),
            archives=tuple(archives),
            headers=_joined([part.headers for part in parts], HEADER),
        )

    def of_archives(self, begin: int, end: int) -> FileTable:
        """Return the members of tar files that follow each other, of a table that has those of one after the other.

        Args:
            begin: The number of the first tar file.
            end: That of the last one, plus one.
        """
        if (begin, end) == (0, len(self.archives)):
            return self
        first, last = np.searchsorted(self.places["archive"], [begin, end])
        places = self.places[first:last].copy()
        places["archive"] -= begin
        name_begin = self.names.ends[first - 1] if first > 0 else 0
        ends = self.names.ends[first:last]
        name_end = ends[-1] if len(ends) > 0 else name_begin
        return FileTable(
            names=Texts(self.names.content[name_begin:name_end], ends - name_begin),
            versions=Texts.empty(len(places)),
            places=places,
            archives=self.archives[begin:end],
            headers=self.headers[first:last],
        )

    def __len__(self) -> int:
        return len(self.headers)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> list[Source]: ...
    def __getitem__(self, index: int | slice) -> Source | list[Source]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        name = self.names[index]
        size, archive, offset = self.places[index].item()
        if archive != _NO_ARCHIVE:
            return TarMember(self.archives[archive], name, offset, size)
        if is_address(name):
            return RemotePath(name, None if size < 0 else size, self.versions[index])
        return Path(name)

    def paths(self, rows: NDArray[np.integer[Any]]) -> Iterator[str]:
        """Yield the path or the address of files in order, those of members with the one of their tar file.

        Args:
            rows: The files, in increasing order.
        """
        is_used = np.zeros(len(self), np.bool_)
        is_used[rows] = True
        prefixes = [f"{archive}/" for archive in self.archives]
        codes = self.places["archive"][is_used].tolist()
        for code, name in zip(codes, compress(self.names, is_used.tolist()), strict=True):
            yield name if code == _NO_ARCHIVE else prefixes[code] + name

    def common_beginning(self, rows: NDArray[np.integer[Any]]) -> str:
        """Return the longest beginning that the paths of files have in common.

        Args:
            rows: The files, one or more, in increasing order.
        """
        archives = distinct(self.places["archive"][rows])
        if archives[0] != _NO_ARCHIVE:
            prefixes = [f"{self.archives[number]}/" for number in archives]
            common = os.path.commonprefix(prefixes)  # noqa: RUF071 - of any characters
            if common not in prefixes:  # they differ before the names of members
                return common
        common = next(self.paths(rows))
        for path in self.paths(rows):
            if not path.startswith(common):
                common = os.path.commonprefix([common, path])  # noqa: RUF071 - of any characters
        return common

    def release_pages(self) -> None:
        """Free the memory of columns that are mapped from a file. They are read again when they are asked for."""
        view: object = self.headers.base
        if not isinstance(view, memoryview) or not isinstance(view.obj, mmap.mmap):
            return
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            view.obj.madvise(mmap.MADV_DONTNEED)

    def identities(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return a hash for each file, equal for all names of one, as `resolve_source` tells them.

        It is valid in this process only.

        Args:
            rows: The files, in increasing order.
        """
        archive = self.places["archive"][rows]
        is_member = archive != _NO_ARCHIVE
        identities = np.empty(len(rows), np.int64)
        paths = real_paths(self.paths(rows[~is_member]))
        identities[~is_member] = np.fromiter((hash(path) for path in paths), np.int64)
        archives = real_paths(str(archive) for archive in self.archives)
        keys = np.array([hash(path) for path in archives], np.int64)
        # A tar file may have two members of one name, but not at one place.
        offsets = self.places["offset"][rows[is_member]]
        identities[is_member] = keys_of_members(keys[archive[is_member]], offsets)
        return identities

    def info(self, index: int) -> VideoInfo:
        """Return the index that a file would have if its header were exact, with evenly spaced frames."""
        header = Header(*self.headers[index].item())
        numbers: Any = range(header.num_frames)
        return VideoInfo(
            self[index],
            header.width,
            header.height,
            header.fps,
            pts=numbers,
            keyframes=numbers,
            time_base=1.0 / header.fps,
            is_image=header.is_image,
        )


@dataclass(frozen=True)
class EstimatedSpan(Span):
    """A span by the header of its file. That of the indexed file is `segment.as_span`."""

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
        files.update(self.files.places["size"][rows].tobytes())
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


def keys_of_members(
    archive_keys: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return a number for each member of tar files, which depends on its place.

    Args:
        archive_keys: The key of the tar file of each member.
        offsets: Of the first byte of each member.
    """
    spread = offsets.astype(np.uint64) * np.uint64(_ODD_NUMBER) & np.uint64(_MAX_KEY)
    return archive_keys ^ spread.astype(np.int64)


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


def _frame_at(seconds: NDArray[np.float64], fps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the index of the first frame at or after each time, where frames are evenly spaced."""
    return np.ceil(seconds * fps - _TOLERANCE)


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
