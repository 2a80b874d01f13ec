"""The index of a tar file, in a file beside it: its members, their headers, and exact indices."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from telecine.base.files import user_cache_folder
from telecine.data.errors import DecodeError
from telecine.data.index_files import DAMAGE_ERRORS, IndexFile, columns_of_infos, save_tensors
from telecine.data.remote_read import open_local
from telecine.data.source import (
    File,
    LocalSource,
    RemotePath,
    Skipped,
    TarMember,
    VideoInfo,
    extent,
    open_file,
)
from telecine.data.table import HEADER, PLACE, FileTable, Texts

SUFFIX = ".telecine-index"
_DIGEST_BYTES = 4096  # of the beginning of a tar file: names, sizes and times of its first members
_FITS = "archive"
_SKIPPED = "skipped"


class Sidecar(NamedTuple):
    """What the sidecar of a tar file has without its exact indices."""

    members: FileTable
    skipped: list[Skipped]
    """Members whose header cannot be read."""


def write_sidecar(
    archive: File,
    members: FileTable,
    infos: Mapping[int, VideoInfo],
    skipped: Sequence[Skipped],
) -> None:
    """Write the sidecar of a tar file beside it, or into the user's cache folder if that is not possible.

    Args:
        archive: The tar file.
        members: Its videos, images and arrays.
        infos: Their exact indices by offset. Members that cannot be decoded have none.
        skipped: Members whose header cannot be read.

    Raises:
        OSError: the file cannot be written.
    """
    columns = columns_of_infos(list(infos), list(infos.values()))
    columns["name.content"] = members.names.content
    columns["name.end"] = members.names.ends
    for name in PLACE.names or ():
        columns[f"place.{name}"] = members.places[name]
    for name in HEADER.names or ():
        columns[f"header.{name}"] = members.headers[name]
    reasons = []
    for skip in skipped:
        assert isinstance(skip.path, TarMember)
        reasons.append((skip.path.name, skip.path.offset, skip.path.size, skip.reason))
    metadata = {_FITS: open_local(archive, _digest, in_order=True), _SKIPPED: json.dumps(reasons)}
    beside, cached = _places(archive)
    path = cached
    if isinstance(beside, Path) and os.access(beside.parent, os.W_OK):
        path = beside
    save_tensors(path, columns, metadata)


def open_sidecar(archive: File) -> IndexFile | None:
    """Return the sidecar of a tar file; None if there is none that fits, or it is damaged."""
    for place in _places(archive):
        if isinstance(place, Path) and not place.is_file():
            continue
        try:
            file = open_local(place, IndexFile, whole=True)
            if file.metadata[_FITS] == open_local(archive, _digest, in_order=True):
                return file
        except (DecodeError, *DAMAGE_ERRORS):
            continue
    return None


def read_sidecar(archive: File) -> Sidecar | None:
    """Return the members of a tar file by its sidecar; None if there is none that fits, or it is damaged."""
    file = open_sidecar(archive)
    if file is None:
        return None
    try:
        names = Texts(file.column("name.content"), file.column("name.end"))
        places = np.zeros(len(names), PLACE)
        for name in PLACE.names or ():
            places[name] = file.column(f"place.{name}")
        headers = np.zeros(len(names), HEADER)
        for name in HEADER.names or ():
            headers[name] = file.column(f"header.{name}")
        members = FileTable(names, Texts.of([""] * len(names)), places, (archive,), headers)
        skipped = []
        for name, offset, size, reason in json.loads(file.metadata[_SKIPPED]):
            skipped.append(Skipped(TarMember(archive, name, offset, size), reason))
        return Sidecar(members, skipped)
    except (TypeError, *DAMAGE_ERRORS):
        return None


def _places(archive: File) -> tuple[File, Path]:
    """Return where the sidecar of a tar file may be: beside it, or in the user's cache folder."""
    name = f".{archive.name}{SUFFIX}"
    beside: File
    if isinstance(archive, RemotePath):
        identity = archive.url
        beside = RemotePath(f"{archive.url.rpartition('/')[0]}/{name}")
    else:
        identity = str(archive.absolute())
        beside = archive.with_name(name)
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:12]
    return beside, user_cache_folder() / "indices" / f"{digest}{name}"


def _digest(archive: LocalSource) -> str:
    """Return a hash of the size and the beginning of a tar file: a copy keeps its sidecar."""
    with open_file(archive) as file:
        _, size = extent(archive, file)
        file.seek(0)
        return hashlib.sha256(f"{size}\n".encode() + file.read(_DIGEST_BYTES)).hexdigest()
