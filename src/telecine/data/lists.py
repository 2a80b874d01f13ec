"""CSV and JSONL lists of videos and images, with the part of each to use."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from telecine.checks import suggestion
from telecine.data.source import DataError, Source
from telecine.data.video_info import Span, VideoInfo

LIST_SUFFIXES = frozenset({".csv", ".jsonl"})
_COLUMNS = ("path", "start", "end", "start_frame", "end_frame")

_Row: TypeAlias = dict[str, object]
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Segment:
    """A video or an image, and the part of it to use. Times and frames count from the video's first frame."""

    source: Source
    """The file, or the member of a tar file."""
    start: float | None = None
    """Start in seconds."""
    end: float | None = None
    """End in seconds, exclusive."""
    start_frame: int | None = None
    """Index of the first frame."""
    end_frame: int | None = None
    """Index of the end frame, exclusive."""

    def to_span(self, info: VideoInfo) -> Span | None:
        """Return the frames of the segment in the indexed video, or None if it has none."""
        first, end = self._first_frame(info), self.end_frame
        if self.end is not None:
            end = info.frame_at(self.end)
        end = info.num_frames if end is None else min(end, info.num_frames)
        return Span(info, first, end - 1) if first < end else None

    def empty_reason(self, info: VideoInfo) -> str:
        """Describe why the segment has no frame of the indexed video."""
        start = f"frame {self.start_frame or 0}" if self.start is None else f"{self.start} s"
        if self._first_frame(info) >= info.num_frames:
            return f"starts at {start}, after the end of the video"
        end = f"frame {self.end_frame}" if self.end is None else f"{self.end} s"
        return f"no frame from {start} to {end}"

    def _first_frame(self, info: VideoInfo) -> int:
        return (self.start_frame or 0) if self.start is None else info.frame_at(self.start)


def read_list(path: Path) -> list[Segment]:
    """Read a list with one video segment or image per line.

    The columns of CSV, or the keys of JSONL, are `path`, relative to the list, and optionally `start` and `end` in
    seconds, or `start_frame` and `end_frame`. Ends are exclusive.

    Raises:
        DataError: the list cannot be read. The message has the line number.
    """
    read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    try:
        rows = list(read(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). A list must be CSV or JSONL in UTF-8.") from error
    if not rows:
        raise DataError(f"{path}: the list is empty. Write one line per video, with its `path`.")
    return [_parse_segment(row, path, f"{path}, line {number}") for number, row in rows]


def _csv_rows(path: Path) -> Iterator[tuple[int, _Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(reader.fieldnames or (), f"{path}, line 1")
        for row in reader:
            if None in row or None in row.values():
                expected = f"must have {len(reader.fieldnames or ())} values, as line 1 does"
                raise DataError(f"{path}, line {reader.line_num}: {expected}. Quote values that contain a comma.")
            yield reader.line_num, {name: value for name, value in row.items() if value}


def _json_rows(path: Path) -> Iterator[tuple[int, _Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = _parse_json(line, f"{path}, line {number}")
                _check_columns(row, f"{path}, line {number}")
                yield number, {name: value for name, value in row.items() if value is not None}


def _parse_json(line: str, where: str) -> _Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error}). Write one object per line.") from error
    if not isinstance(row, dict):
        example = '{"path": "a.mp4"}'
        raise DataError(f"{where}: must be a JSON object, but got {type(row).__name__}. Write e.g. {example}.")
    return row


def _check_columns(names: Iterable[str], where: str) -> None:
    for name in names:
        if name not in _COLUMNS:
            raise DataError(f"{where}: unknown column `{name}`. {suggestion(name, _COLUMNS)}")
    if "path" not in names:
        raise DataError(f"{where}: the column `path` is missing. It names the video, relative to the list.")


def _parse_segment(row: _Row, path: Path, where: str) -> Segment:
    name = row.get("path", "")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: `path` must name a file, but got {name!r}. Remove the line.")
    start, end = (_parse_number(row, key, float, where) for key in ("start", "end"))
    start_frame, end_frame = (_parse_number(row, key, int, where) for key in ("start_frame", "end_frame"))
    for unit, first, last in (("", start, end), ("_frame", start_frame, end_frame)):
        if last is not None and last <= (first or 0):
            raise DataError(f"{where}: `end{unit}` must be greater than the start ({first or 0}), but got {last}.")
    for key in ("start", "end"):
        if key in row and f"{key}_frame" in row:
            raise DataError(f"{where}: has both `{key}` and `{key}_frame`. Remove one of them.")
    return Segment(path.parent / name, start, end, start_frame, end_frame)


def _parse_number(row: _Row, name: str, parse: Callable[[str], _Number], where: str) -> _Number | None:
    if name not in row:
        return None
    try:
        value = parse(str(row[name]))
    except ValueError:
        value = parse("-1")
    if not 0 <= value < float("inf"):
        contract = "a frame index" if name.endswith("_frame") else "a finite number of seconds"
        raise DataError(f"{where}: `{name}` must be {contract}, at least 0, but got {row[name]!r}.")
    return value
