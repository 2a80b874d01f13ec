"""The members of all tar files of a data set, in one file whose columns are mapped into memory."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from telecine.base.files import flush, partial_path
from telecine.data.fingerprint import fingerprint_of
from telecine.data.lazy.file_table import LOCATION, FileTable
from telecine.data.lazy.header import HEADER
from telecine.data.lazy.index_file import FORMAT, read_description
from telecine.data.lazy.string_column import StringColumn
from telecine.data.source import File, Skipped, TarMember

_SKIPPED = "skipped"
_SECONDS_KEPT = 365 * 24 * 3600.0  # after a run has mapped it: longer than a run takes
# Of columns, those of records as bytes.
_DTYPES: dict[str, Any] = {
    "name.end": np.int64,
    "place": LOCATION,
    "header": HEADER,
    "name": np.uint8,
}


def key_of_archives(archives: Sequence[File]) -> str:
    """Return a hash of tar files, which is another one if one of them has changed: the name of their file."""
    text = f"members {FORMAT} {sys.byteorder}"
    for archive in archives:
        text += f"\n{archive}\n{fingerprint_of(archive)}"
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def write_members(path: Path, members: FileTable, skipped: Sequence[Skipped]) -> None:
    """Write the members of tar files. A file that another process writes meanwhile stays.

    On a shared disk, a process that has mapped a file ends if it is replaced.

    Args:
        path: The file.
        members: The members of all tar files, whose order is that of `map_members`.
        skipped: Members whose header cannot be read.

    Raises:
        OSError: the file cannot be written.
    """
    number_of = {archive: number for number, archive in enumerate(members.archives)}
    reasons = []
    for skip in skipped:
        member = skip.path
        assert isinstance(member, TarMember)
        number = number_of[member.archive]
        reasons.append((number, member.name, member.offset, member.size, skip.reason))
    columns: dict[str, NDArray[Any]] = {
        "name.end": members.names.ends,
        "place": members.locations.view(np.uint8),
        "header": members.headers.view(np.uint8),
        "name": members.names.content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        partial.write_bytes(save(columns, {_SKIPPED: json.dumps(reasons)}))
        flush([partial])
        try:
            os.link(partial, path)
        except FileExistsError:
            pass  # another process has written the same, and may have mapped it
        except OSError:  # a file system without links
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def map_members(path: Path, archives: Sequence[File]) -> tuple[FileTable, list[Skipped]]:
    """Return the members of tar files by their file, and set its time of change to now: `remove_unused` keeps it.

    Args:
        path: The file.
        archives: The tar files that it was written for.

    Returns:
        The members, and those whose header cannot be read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged. So are the other errors of `DAMAGE_ERRORS`.
    """
    with open(path, "rb") as file:
        metadata, described = read_description(file)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with suppress(OSError):  # of another user
        os.utime(path)
    columns: dict[str, NDArray[Any]] = {}
    for name, dtype in _DTYPES.items():
        column = described[name]
        num_bytes = column.shape[0] * column.dtype.itemsize
        count = num_bytes // np.dtype(dtype).itemsize
        columns[name] = np.frombuffer(content, dtype, count, column.begin)
    table = FileTable(
        names=StringColumn(columns["name"], columns["name.end"]),
        versions=StringColumn.empty(len(columns["header"])),
        locations=columns["place"],
        archives=tuple(archives),
        headers=columns["header"],
    )
    skipped = []
    for number, name, offset, size, reason in json.loads(metadata[_SKIPPED]):
        skipped.append(Skipped(TarMember(archives[number], name, offset, size), reason))
    return table, skipped


def remove_unused(folder: Path) -> None:
    """Remove files of tar files that have changed since: those that no run has mapped for a year.

    Others stay, because processes on other machines may have mapped them.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has renamed or removed it
            if path.stat().st_mtime < time.time() - _SECONDS_KEPT:
                path.unlink()
