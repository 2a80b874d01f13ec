"""Lists of videos and images, as CSV, JSONL or Parquet: a segment of each per line or row."""

import csv
import difflib
import io
import json
import logging
import math
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from telecine.base.checks import count, describe, shorten
from telecine.data.errors import DataError, Deadline, DecodeError
from telecine.data.remote_read import open_local
from telecine.data.source import (
    File,
    RemotePath,
    Skipped,
    Source,
    Span,
    VideoInfo,
    is_address,
    is_file_name,
    open_file,
)
from telecine.settings import TIMEOUT

logger = logging.getLogger(__name__)

_PARQUET = ".parquet"
LIST_SUFFIXES = frozenset({".csv", ".jsonl", _PARQUET})
_COLUMNS = ("path", "start", "end", "start_frame", "end_frame")
_MAX_NUMBER = 10**9  # thirty years in seconds, or a year at 30 frames per second
_MAX_NAMES = 10  # unknown columns that are named
_MAX_LINE = 2**20  # characters
_NUM_ROWS_AT_ONCE = 2**13  # of Parquet, that are in memory
_NUM_FILES_AT_ONCE = 2**14  # whose paths are shared between the segments of a list

_Row: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class Segment:
    """A video or an image, and the part of it to use, in times or frames from its first frame."""

    source: Source
    start: float | None = None  # in seconds
    end: float | None = None  # exclusive
    start_frame: int | None = None
    end_frame: int | None = None  # exclusive
    group: str = ""  # what the column says by which data is held out
    columns: Mapping[str, object] = field(default_factory=dict, compare=False)
    """The other columns of its line, if they are kept."""

    def as_span(self, info: VideoInfo) -> Span | Skipped:
        """Return the span of the segment in the indexed video, or why it has no frame."""
        if self.start is not None:
            first = info.frame_at(self.start)
            start = f"{self.start} s"
        else:
            first = self.start_frame or 0
            start = f"frame {first}"
        if self.end is not None:
            stop = info.frame_at(self.end)
            end = f"{self.end} s"
        else:
            stop = info.num_frames if self.end_frame is None else self.end_frame
            end = f"frame {self.end_frame}"
        stop = min(stop, info.num_frames)
        if first < stop:
            return Span(info, first, stop - 1, self.group, self.columns)
        if first >= info.num_frames:
            return Skipped(self.source, f"starts at {start}, after its last frame")
        return Skipped(self.source, f"no frame from {start} to {end}")


def read_list(
    path: File,
    timeout: float = TIMEOUT,
    group_column: str | None = None,
    *,
    keep_columns: bool | Collection[str] = False,
) -> Iterable[Segment]:
    """Read a list with one segment of a video, or one image, per line of CSV or JSONL, or per row of Parquet.

    The columns, or the keys of JSONL, are `path`, relative to the list or an address, and optionally `start`
    and `end` in seconds, or `start_frame` and `end_frame`. Ends are exclusive. Other columns are left out, and logged,
    or kept.

    Args:
        path: The list.
        timeout: Seconds that reading may take; of Parquet, that the list may take to arrive.
        group_column: The column with the groups of which some are held out; it may be missing.
        keep_columns: Whether segments have the other columns, such as captions; or the names of those they have.

    Returns:
        The segments. Those of Parquet are read while they are iterated over, once, and errors are raised then.

    Raises:
        DataError: the list cannot be read or has a mistake, with the line number; or it takes too long.
        ImportError: the list is Parquet, and the package for it is not installed.
    """
    deadline = Deadline(path, timeout)
    columns = _OtherColumns(group_column, keep=keep_columns)
    if path.suffix.lower() == _PARQUET:
        return _read_parquet(path, columns, deadline)
    try:
        file = open_local(path, open_file, deadline, reads="whole")
    except (OSError, DecodeError) as error:
        raise _unreadable(path, error) from error
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        lines = _Lines(text, deadline)
        rows = _csv_rows(lines) if path.suffix.lower() == ".csv" else _json_rows(lines)
        try:
            segments = [_parse_segment(path, row, columns) for row in rows]
            if not segments:
                raise _empty(path)
        except _RowError as error:
            raise DataError(f"{path}, line {max(lines.number, 1)}: {error}") from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            where = f"{path}, after line {lines.number - 1}" if lines.number > 1 else path
            raise _unreadable(where, error) from error
    columns.log_left_out(path)
    return segments


def _read_parquet(path: File, columns: "_OtherColumns", deadline: Deadline) -> Iterator[Segment]:
    """Read Parquet by columns, from a mapped file: a few thousand rows are in memory."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        message = (
            f"{path} needs the package pyarrow, which is not installed. Run `pip install pyarrow`."
        )
        raise ImportError(message, name="pyarrow") from error

    def open_parquet(local: Path) -> Any:
        open_file(local).close()  # a FIFO is refused
        return ParquetFile(local, memory_map=True)

    number = 0
    try:
        parquet = open_local(path, open_parquet, deadline, reads="whole")
        names = parquet.schema_arrow.names
        _check_columns(names)
        for batch in parquet.iter_batches(
            _NUM_ROWS_AT_ONCE, columns=columns.needed(names), use_threads=False
        ):
            for row in batch.to_pylist():
                number += 1
                yield _parse_segment(path, _without_missing(row), columns)
    except _RowError as error:
        where = f"{path}, row {number}" if number > 0 else path
        raise DataError(f"{where}: {error}") from error
    except (ArrowException, OSError, DecodeError) as error:
        where = f"{path}, after row {number}" if number > 0 else path
        raise _unreadable(where, error) from error
    if number == 0:
        raise _empty(path)
    columns.log_left_out(path)


def _without_missing(row: _Row) -> _Row:
    """Return the values of a row of Parquet that are not missing. Libraries write missing numbers as NaN."""
    values = {}
    for name, value in row.items():
        if isinstance(value, float):
            if math.isnan(value):
                continue
            if name in ("start_frame", "end_frame") and value.is_integer():
                value = int(value)  # libraries write 4.0 where others of the column are missing
        if value is not None:
            values[name] = value
    return values


def _unreadable(where: object, reason: Exception) -> DataError:
    remedy = "A list must be Parquet, or CSV or JSONL in UTF-8."
    return DataError(f"{where}: cannot be read ({reason}). {remedy}")


def _empty(path: File) -> DataError:
    return DataError(f"{path}: the list is empty. Write one line per file, with its `path`.")


class _OtherColumns:
    """The columns of a list that are not in `_COLUMNS`: the groups, and those that are kept or left out.

    Args:
        group: The column with the groups.
        keep: Whether segments have the columns, or the names of those they have.
    """

    def __init__(self, group: str | None, *, keep: bool | Collection[str]) -> None:
        self.group = group
        self._keeps_all = keep is True
        self._kept = frozenset() if isinstance(keep, bool) else frozenset(keep)
        self._left_out: dict[str, None] = {}  # in their order

    def needed(self, names: Collection[str]) -> list[str]:
        """Return those of the columns of a list that are read, and note the others."""
        if self._keeps_all:
            return list(names)
        needed = {*_COLUMNS, self.group, *self._kept}
        self._left_out.update(dict.fromkeys(name for name in names if name not in needed))
        return [name for name in names if name in needed]

    def of_segment(self, row: _Row) -> _Row:
        """Return the columns that a segment has."""
        others = {name: value for name, value in row.items() if name not in _COLUMNS}
        if self._keeps_all:
            return others
        kept = {name: others.pop(name) for name in self._kept if name in others}
        self._left_out.update(dict.fromkeys(others))
        return kept

    def log_left_out(self, path: File) -> None:
        """Log the columns that were left out of the list at a path."""
        if self.group is not None:
            self._left_out.pop(self.group, None)
        if self._left_out:
            names = ", ".join(f"`{shorten(name)}`" for name in list(self._left_out)[:_MAX_NAMES])
            num_columns = count(len(self._left_out), "column")
            logger.warning("%s: left out %s that no clip needs: %s", path, num_columns, names)


class _RowError(ValueError):
    """The line that was read last is not valid."""


class _Lines:
    """The lines of a file, of bounded length. `number` is that of the line that was read last, from 1."""

    def __init__(self, file: io.TextIOWrapper, deadline: Deadline) -> None:
        self.number = 0
        self._file = file
        self._deadline = deadline

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_MAX_LINE + 1)  # a file may have no line ends at all
        if line == "":
            raise StopIteration
        self.number += 1
        if len(line) > _MAX_LINE:
            raise _RowError(f"must have at most {_MAX_LINE} characters. Check that it is a list.")
        self._deadline.check()
        return line


def _csv_rows(lines: _Lines) -> Iterator[_Row]:
    reader = csv.DictReader(lines)
    columns = reader.fieldnames or ()
    _check_columns(columns)
    for row in reader:
        if None in row or None in row.values():
            raise _RowError(
                f"must have {len(columns)} values, as line 1 does. Quote values that contain a comma."
            )
        yield {name: value for name, value in row.items() if value}


def _json_rows(lines: _Lines) -> Iterator[_Row]:
    for line in lines:
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also for integers of thousands of digits
            raise _RowError(f"not valid JSON ({error}). Write one object per line.") from error
        if not isinstance(row, dict):
            example = '{"path": "a.mp4"}'
            raise _RowError(
                f"must be a JSON object, but got {type(row).__name__}. Write e.g. {example}."
            )
        _check_columns(row)
        yield {name: value for name, value in row.items() if value is not None}


def _check_columns(names: Collection[str]) -> None:
    if len(set(names)) < len(names):
        raise _RowError("has a column twice. Remove one.")
    for name in names:
        if name in _COLUMNS:
            continue
        similar = _similar_column(name[:100])
        if similar is not None and similar not in names:
            raise _RowError(f"unknown column `{shorten(name)}`. Did you mean `{similar}`?")
    if "path" not in names:
        raise _RowError("the column `path` is missing. It names the file, relative to the list.")


@lru_cache  # for the lines of JSONL, which repeat their keys
def _similar_column(name: str) -> str | None:
    matches = difflib.get_close_matches(name, _COLUMNS, n=1, cutoff=0.75)
    return matches[0] if matches else None


def _parse_path(row: _Row) -> str:
    name = row.get("path", "")
    if not isinstance(name, str) or not name.strip() or not is_file_name(name):
        raise _RowError(f"`path` must name a file, but got {describe(name)}. Remove the line.")
    return name


@lru_cache(_NUM_FILES_AT_ONCE)  # a list of scenes names each video many times
def _named_file(path: File, name: str) -> File:
    """Return the file of a name in the list at `path`: an address, or a path relative to the list."""
    if is_address(name):
        return RemotePath(name)
    if isinstance(path, Path):
        return path.parent / name
    if PurePosixPath(name).is_absolute():
        got = f"but got {describe(name)}. A list at an address cannot name local files."
        raise _RowError(f"`path` must be relative to the list, or an address, {got}")
    protocol = path.url.partition("://")[0]
    return RemotePath(f"{protocol}://{posixpath.normpath(path.path.parent / name)}")


def _parse_segment(path: File, row: _Row, columns: _OtherColumns) -> Segment:
    group = "" if columns.group is None else str(row.get(columns.group, ""))
    segment = Segment(
        _named_file(path, _parse_path(row)),
        start=_parse_seconds(row, "start"),
        end=_parse_seconds(row, "end"),
        start_frame=_parse_frame(row, "start_frame"),
        end_frame=_parse_frame(row, "end_frame"),
        group=group,
        columns=columns.of_segment(row),
    )
    _check_order("end", segment.start or 0, segment.end)
    _check_order("end_frame", segment.start_frame or 0, segment.end_frame)
    for name in ("start", "end"):
        if name in row and f"{name}_frame" in row:
            raise _RowError(f"has both `{name}` and `{name}_frame`. Remove one of them.")
    return segment


def _check_order(name: str, start: float, end: float | None) -> None:
    if end is not None and end <= start:
        raise _RowError(f"`{name}` must be greater than the start ({start}), but got {end}.")


def _parse_seconds(row: _Row, name: str) -> float | None:
    if name not in row:
        return None
    try:
        seconds = float(str(row[name]))
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= _MAX_NUMBER:
        raise _number_error(name, "a number of seconds", row[name])
    return seconds


def _parse_frame(row: _Row, name: str) -> int | None:
    if name not in row:
        return None
    try:
        frame = int(str(row[name]))
    except ValueError:
        frame = -1
    if not 0 <= frame <= _MAX_NUMBER:
        raise _number_error(name, "a frame index", row[name])
    return frame


def _number_error(name: str, kind: str, value: object) -> _RowError:
    return _RowError(
        f"`{name}` must be {kind}, at least 0 and at most {_MAX_NUMBER}, but got {describe(value)}."
    )
