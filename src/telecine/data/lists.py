"""Lists of videos and images, as CSV or JSONL, each with the part of it to use."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telecine.data.errors import DataError
from telecine.data.info import VideoInfo
from telecine.data.source import Source
from telecine.data.split import Span, whole_video
from telecine.shapes import nearest

LIST_SUFFIXES = frozenset({".csv", ".jsonl"})
_COLUMNS = ("path", "start", "end", "start_frame", "end_frame")


@dataclass(frozen=True)
class Stretch:
    """A video or an image that was found, and the part of it that is wanted."""

    source: Source
    """The file, or the member of a tar file."""
    start: float | None = None
    """Seconds from the first frame of the video to the first of the stretch."""
    end: float | None = None
    """Seconds from the first frame of the video to the end of the stretch, at which no frame belongs to it."""
    start_frame: int | None = None
    """Position of the first frame of the stretch."""
    end_frame: int | None = None
    """Position of the frame before which the stretch ends."""

    def span_in(self, info: VideoInfo) -> Span | None:
        """Return the frames of the indexed video, or None if there are none in the stretch."""
        first, end = self._first_in(info), info.num_frames if self.end_frame is None else self.end_frame
        end = end if self.end is None else info.position_at(self.end)
        whole = whole_video(info)
        return Span(info, first, min(end - 1, whole.last_frame)) if first < min(end, info.num_frames) else None

    def why_empty(self, info: VideoInfo) -> str:
        """Say why no frame of the indexed video is in the stretch."""
        start = f"frame {self.start_frame or 0}" if self.start is None else f"{self.start} s"
        if self._first_in(info) >= info.num_frames:
            return f"begins at {start}, after the end of the video"
        end = f"frame {self.end_frame}" if self.end is None else f"{self.end} s"
        return f"holds no frame from {start} to {end}"

    def _first_in(self, info: VideoInfo) -> int:
        return (self.start_frame or 0) if self.start is None else info.position_at(self.start)


def read_list(path: Path) -> list[Stretch]:
    """Read a list: a line for each stretch of a video, or for an image.

    Columns (CSV) or keys (JSONL) are `path`, relative to the list, and where wanted `start` and `end` in seconds or
    `start_frame` and `end_frame`. A stretch ends before its end, as a slice does.

    Raises:
        DataError: the list cannot be read; the message has the number of the line.
    """
    read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    try:
        rows = list(read(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). A list is CSV or JSONL in UTF-8.") from error
    if not rows:
        raise DataError(f"{path}: the list is empty. Write a line for each video, with its `path`.")
    return [_stretch(row, path, f"{path}, line {number}") for number, row in rows]


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(reader.fieldnames or (), f"{path}, line 1")
        for row in reader:
            if None in row or None in row.values():
                got = f"{len(reader.fieldnames or ())} columns above and another number here"
                raise DataError(f"{path}, line {reader.line_num}: {got}. Quote values that hold a comma.")
            yield reader.line_num, {name: value for name, value in row.items() if value}


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = _parsed(line, f"{path}, line {number}")
                _check_columns(row, f"{path}, line {number}")
                yield number, {name: value for name, value in row.items() if value is not None}


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is no JSON ({error}). Write one object a line.") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: is {type(row).__name__}, no object. Write one a line, as {{"path": "a.mp4"}}.')
    return row


def _check_columns(names: Any, where: str) -> None:
    for name in names:
        if name not in _COLUMNS:
            offer = nearest(name, _COLUMNS) or f"Known are {', '.join(_COLUMNS)}."
            raise DataError(f"{where}: there is no column `{name}`. {offer}")
    if "path" not in names:
        raise DataError(f"{where}: the column `path` is missing. It names the video, relative to the list.")


def _stretch(row: dict[str, Any], path: Path, where: str) -> Stretch:
    name = row.get("path", "")
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: `path` must name a file, but got {name!r}. Leave the line out.")
    start, end = (_number(row, key, float, where) for key in ("start", "end"))
    start_frame, end_frame = (_number(row, key, int, where) for key in ("start_frame", "end_frame"))
    for kind, first, last in (("", start, end), ("_frame", start_frame, end_frame)):
        if last is not None and last <= (first or 0):
            raise DataError(f"{where}: `end{kind}` must be after its start ({first or 0}), but got {last}.")
    for kind in ("start", "end"):
        if kind in row and f"{kind}_frame" in row:
            raise DataError(f"{where}: has both `{kind}` and `{kind}_frame`. Give one of them.")
    return Stretch(path.parent / name, start, end, start_frame, end_frame)


def _number(row: dict[str, Any], name: str, kind: type[Any], where: str) -> Any:
    if name not in row:
        return None
    try:
        value = kind(str(row[name]))
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        contract = "a whole number" if kind is int else "a number of seconds"
        raise DataError(f"{where}: `{name}` must be {contract}, at least 0, but got {row[name]!r}.")
    return value
