"""What a list states of its files by the columns `num_frames`, `fps`, `width` and `height`, so that none is opened."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from telecine.base.checks import argument_error
from telecine.data.errors import DataError
from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.header import Header
from telecine.data.lists import Segment
from telecine.data.mp4_tables import MAX_FRAMES
from telecine.data.source import Source, kind_of

STATED = ("num_frames", "fps", "width", "height")
"""The columns that describe a file."""
_MAX_SIDE = 2**31 - 1  # pixels
_UNKNOWN_SIDE = 1
_FPS_TOLERANCE = 1e-3  # of rates in two lines of a list, as a fraction


def stated_header(segment: Segment) -> Header | None:
    """Return what the line of a list says of its video or image; None if that is not enough, and of an array."""
    columns = segment.columns
    if "num_frames" not in columns:
        return None
    kind = kind_of(segment.source)
    try:
        num_frames = _whole_number(columns["num_frames"])
        fps = 1.0 if kind == "images" else float(str(columns["fps"]))
        width = _whole_number(columns.get("width", _UNKNOWN_SIDE))
        height = _whole_number(columns.get("height", _UNKNOWN_SIDE))
    except (KeyError, ValueError):
        return None
    has_frames = 0 < num_frames <= MAX_FRAMES and 0 < fps < math.inf
    if not has_frames or not 1 <= min(width, height) <= max(width, height) <= _MAX_SIDE:
        return None
    if kind == "arrays" or (kind == "images" and num_frames > 1):
        return None
    return Header(num_frames, fps, width, height, is_image=kind == "images")


def check_distant_lines(files: FileTable, first_rows: NDArray[np.int64]) -> None:
    """Check that lists say the same of a file in all its rows of a table.

    Args:
        files: The table.
        first_rows: For each row, the first one of the same file.

    Raises:
        DataError: They do not.
    """
    is_stated = (files.headers["digest"] == 0) & (files.headers["num_frames"] > 0)
    is_later = first_rows < np.arange(len(first_rows))
    for row in np.flatnonzero(is_later & is_stated & is_stated[first_rows]).tolist():
        check_agreement(files[row], files.header(first_rows[row]), files.header(row))


def check_agreement(source: Source, first: Header | None, other: Header | None) -> None:
    """Check that two lines of a list say the same of a file, or one of them nothing.

    Raises:
        DataError: They do not.
    """
    if first is None or other is None:
        return
    for name in STATED:
        values = (getattr(first, name), getattr(other, name))
        if name in ("width", "height") and _UNKNOWN_SIDE in values:
            continue
        if not math.isclose(*values, rel_tol=_FPS_TOLERANCE if name == "fps" else 0.0):
            contract = "the same in all lines of one file"
            got = f"{values[0]} and {values[1]} for {source}"
            remedy = "Columns of a list describe the whole file, also in the lines of its segments."
            raise argument_error(name, contract, got, remedy, DataError)


def _whole_number(value: object) -> int:
    """Return a number that may be written as 12.0; raise a `ValueError` for another one."""
    number = float(str(value))
    if not number.is_integer():
        raise ValueError(f"{value} is not a whole number")
    return int(number)
