"""CSV and JSONL lists of videos and images: a segment of each per line."""

import csv
import difflib
import io
import json
import logging
import posixpath
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from telecine.base.checks import count, describe, shorten
from telecine.data.errors import DataError, Deadline, DecodeError
from telecine.data.index import Skipped
from telecine.data.remote import open_local
from telecine.data.source import File, RemotePath, Source, Span, VideoInfo, is_address, is_file_name, open_file
from telecine.settings import TIMEOUT

logger = logging.getLogger(__name__)

LIST_SUFFIXES = frozenset({".csv", ".jsonl"})
_NUMBERS: dict[str, type[int] | type[float]] = {"start": float, "end": float, "start_frame": int, "end_frame": int}
_COLUMNS = ("path", *_NUMBERS)
_MAX_NUMBER = 10**9  # thirty years in seconds, or a year at 30 frames per second
_MAX_NAMES = 10  # unknown columns that are named
_MAX_LINE = 2**20  # characters

_Row: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class Segment:
    """A video or an image, and the part of it to use, in times or frames from its first frame."""

    source: Source
    start: float | None = None  # in seconds
    end: float | None = None  # exclusive
    start_frame: int | None = None
    end_frame: int | None = None  # exclusive

    def span_in(self, info: VideoInfo) -> Span | Skipped:
        """Return the span of the segment in the indexed video, or why it has no frame."""
        first = (self.start_frame or 0) if self.start is None else info.frame_at(self.start)
        last = self.end_frame if self.end is None else info.frame_at(self.end)
        last = info.num_frames if last is None else min(last, info.num_frames)
        if first < last:
            return Span(info, first, last - 1)
        start = f"frame {self.start_frame or 0}" if self.start is None else f"{self.start} s"
        end = f"frame {self.end_frame}" if self.end is None else f"{self.end} s"
        after = f"starts at {start}, after its last frame"
        return Skipped(self.source, after if first >= info.num_frames else f"no frame from {start} to {end}")


def read_list(path: File, timeout: float = TIMEOUT) -> list[Segment]:
    """Read a list with one video segment or image per line, within `timeout` seconds.

    The columns of CSV, or the keys of JSONL, are `path`, relative to the list or an address, and optionally `start`
    and `end` in seconds, or `start_frame` and `end_frame`. Ends are exclusive. Other columns are left out, and logged.
    Raises a `DataError` with the line number if the list cannot be read.
    """
    read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    segments: list[Segment] = []
    sources: dict[str, File] = {}  # a list of scenes names each video many times
    other: dict[str, None] = {}  # columns, in their order
    deadline, lines = Deadline(path, timeout), _Lines()
    try:
        with io.TextIOWrapper(open_local(path, open_file, deadline), encoding="utf-8-sig", newline="") as file:
            for row in read(deadline.limit(lines.of(file))):
                other |= dict.fromkeys(name for name in row if name not in _COLUMNS)
                name = row.get("path", "")
                if not isinstance(name, str) or not name.strip() or not is_file_name(name):
                    raise _RowError(f"`path` must name a file, but got {describe(name)}. Remove the line.")
                source = sources.get(name) or sources.setdefault(name, _named_file(path, name))
                segments.append(_parse_segment(row, source))
    except _RowError as error:
        raise DataError(f"{path}, line {lines.number or 1}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error, DecodeError) as error:
        where = f"{path}, after line {lines.number - 1}" if lines.number > 1 else path
        raise DataError(f"{where}: cannot be read ({error}). A list must be CSV or JSONL in UTF-8.") from error
    if not segments:
        raise DataError(f"{path}: the list is empty. Write one line per file, with its `path`.")
    if other:
        names = ", ".join(f"`{shorten(name)}`" for name in [*other][:_MAX_NAMES])
        logger.warning("%s: left out %s that no clip needs: %s", path, count(len(other), "column"), names)
    return segments


class _RowError(ValueError):
    """The line that was read last is not valid."""


class _Lines:
    number = 0  # of the line that was read last

    def of(self, file: io.TextIOWrapper) -> Iterator[str]:
        """Yield the lines of a file, which may have no line ends at all."""
        for self.number, line in enumerate(iter(partial(file.readline, _MAX_LINE + 1), ""), 1):
            if len(line) > _MAX_LINE:
                raise _RowError(f"must have at most {_MAX_LINE} characters. Check that it is a list.")
            yield line


def _named_file(path: File, name: str) -> File:
    """Return the file of a name in the list at `path`: an address, or a path relative to the list."""
    if is_address(name):
        return RemotePath(name)
    if isinstance(path, Path):
        return path.parent / name
    if PurePosixPath(name).is_absolute():
        got = f"but got {describe(name)}. A list at an address cannot name local files."
        raise _RowError(f"`path` must be relative to the list, or an address, {got}")
    return RemotePath(f"{path.url.partition('://')[0]}://{posixpath.normpath(path.path.parent / name)}")


def _csv_rows(lines: Iterable[str]) -> Iterator[_Row]:
    reader = csv.DictReader(lines)
    _check_columns(names := reader.fieldnames or ())
    if len({*names}) < len(names):
        raise _RowError("has a column twice. Remove one.")
    for row in reader:
        if None in row or None in row.values():
            raise _RowError(f"must have {len(names)} values, as line 1 does. Quote values that contain a comma.")
        yield {name: value for name, value in row.items() if value}


def _json_rows(lines: Iterable[str]) -> Iterator[_Row]:
    for line in lines:
        if not line.isspace():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # also for integers of thousands of digits
                raise _RowError(f"not valid JSON ({error}). Write one object per line.") from error
            if not isinstance(row, dict):
                example = '{"path": "a.mp4"}'
                raise _RowError(f"must be a JSON object, but got {type(row).__name__}. Write e.g. {example}.")
            _check_columns(row)
            yield {name: value for name, value in row.items() if value is not None}


def _check_columns(names: Collection[str]) -> None:
    for name in names:
        if name not in _COLUMNS and (meant := _meant_column(name[:100])) not in {None, *names}:
            raise _RowError(f"unknown column `{shorten(name)}`. Did you mean `{meant}`?")
    if "path" not in names:
        raise _RowError("the column `path` is missing. It names the file, relative to the list.")


@lru_cache
def _meant_column(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, _COLUMNS, n=1, cutoff=0.75)), None)


def _parse_segment(row: _Row, source: File) -> Segment:
    found = {name: _parse_number(name, row[name]) for name in _NUMBERS if name in row}
    for unit in ("", "_frame"):
        first, last = found.get(f"start{unit}") or 0, found.get(f"end{unit}")
        if last is not None and last <= first:
            raise _RowError(f"`end{unit}` must be greater than the start ({first}), but got {last}.")
    for key in ("start", "end"):
        if key in row and f"{key}_frame" in row:
            raise _RowError(f"has both `{key}` and `{key}_frame`. Remove one of them.")
    return Segment(source, **found)


def _parse_number(name: str, value: object) -> Any:
    with suppress(ValueError):
        if 0 <= (number := _NUMBERS[name](str(value))) <= _MAX_NUMBER:
            return number
    kind = "a frame index" if _NUMBERS[name] is int else "a number of seconds"
    raise _RowError(f"`{name}` must be {kind}, at least 0 and at most {_MAX_NUMBER}, but got {describe(value)}.")
