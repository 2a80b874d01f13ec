"""The index of a tar file, in a file beside it: its members, their headers, and exact indices."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from telecine.data.errors import Deadline, DecodeError, is_of_system
from telecine.data.fingerprint import Fingerprint
from telecine.data.index_paths import sidecar_paths
from telecine.data.lazy.file_table import LOCATION, FileTable
from telecine.data.lazy.header import HEADER, Header, read_header, read_mp4_header
from telecine.data.lazy.index_file import (
    DAMAGE_ERRORS,
    IndexFile,
    columns_of_infos,
    columns_of_records,
    save_tensors,
)
from telecine.data.lazy.recent import Recent
from telecine.data.lazy.string_column import StringColumn
from telecine.data.remote_read import SourceBytes, open_bytes, open_local
from telecine.data.source import (
    File,
    RemotePath,
    Skipped,
    Source,
    TarMember,
    VideoInfo,
    kind_of,
)
from telecine.data.tar_files import scan_tar
from telecine.settings import ClipConfig
from telecine.settings.data import PILLOW_MAX_PIXELS

_BEGIN_BYTES = 4096  # of a tar file: names, sizes and times of its first members
# Tar files end with up to 10 KiB of zeros: more is read, so that a changed last member shows.
_END_BYTES = 2**14
_FINGERPRINT = "archive_fingerprint"
_BEGIN_DIGEST = "archive"
_END_DIGEST = "archive_end"
_SKIPPED = "skipped"
_HAS_ALL_INDICES = "has_indices"
_NUM_OPEN = 64  # sidecars that a process keeps open


class Sidecar(NamedTuple):
    """What the sidecar of a tar file has without its exact indices."""

    members: FileTable
    skipped: list[Skipped]
    """Members whose header cannot be read."""
    has_all_indices: bool
    """Whether it has the exact indices of all members that can be decoded. Otherwise it may have those of some."""
    was_read_whole: bool = True
    """Whether all was read, up to any damage. Otherwise an error of the system left out members; another attempt may
    read them."""


def scan_archive(archive: File, config: ClipConfig) -> Sidecar:
    """Read the headers of the videos, images and arrays of a tar file in one pass, up to any damage.

    Members that the limits of one run refuse are in it, too: other runs read the same sidecar.

    Args:
        archive: The tar file.
        config: Its `timeout` is for the pass, and for each member that is then read alone, because it is no MP4 file
            with tables. Its other settings are for arrays.

    Raises:
        DataError: the tar file, or a member that is read alone, is not read in time.
    """
    deadline = Deadline(archive, config.timeout)
    of_any_run = ClipConfig(max_pixels=PILLOW_MAX_PIXELS, timeout=config.timeout)

    def read_tables(
        member: TarMember, opened: BinaryIO
    ) -> tuple[TarMember, Header | Skipped | None]:
        """Return a member, and its header by the tables of MP4 or why it has none; None if it must be read alone."""
        if kind_of(member) == "arrays":
            return member, None
        try:
            content = SourceBytes(opened, member.offset, member.size)
            _, header = read_mp4_header(content, member, of_any_run, deadline)
        except DecodeError as error:
            return member, Skipped.of(member, error)
        return member, header

    results, was_read_whole = scan_tar(archive, deadline, read_tables)
    readable: list[TarMember] = []
    records: list[Header] = []
    skipped: list[Skipped] = []
    for member, by_tables in results:
        header = by_tables
        if header is None:
            limits = config if kind_of(member) == "arrays" else of_any_run
            header, is_final = _read_member(member, limits)
            was_read_whole = was_read_whole and is_final
        if isinstance(header, Skipped):
            skipped.append(header)
        else:
            readable.append(member)
            records.append(header)
    table = FileTable.of(readable, np.array(records, HEADER))
    return Sidecar(table, skipped, has_all_indices=False, was_read_whole=was_read_whole)


def _read_member(member: TarMember, config: ClipConfig) -> tuple[Header | Skipped, bool]:
    """Return the header of a member, or why it has none, and whether another attempt will tell the same."""
    try:
        return read_header(member, config), True
    except DecodeError as error:
        return Skipped.of(member, error), not is_of_system(error)


def has_arrays(sidecar: Sidecar) -> bool:
    """Return whether a member is an array. Their axes are settings of a run, so such a tar file has no sidecar."""
    if any(kind_of(skip.path) == "arrays" for skip in sidecar.skipped):
        return True
    members = sidecar.members
    without_digest = np.flatnonzero(members.headers["digest"] == 0).tolist()
    return any(kind_of(members[row]) == "arrays" for row in without_digest)


def write_sidecar(
    archive: File, sidecar: Sidecar, infos: Mapping[int, VideoInfo] | None = None
) -> None:
    """Write the sidecar of a tar file beside it, or into the user's cache folder if that is not possible.

    Args:
        archive: The tar file.
        sidecar: Its members.
        infos: Exact indices of members by their offset. Members that cannot be decoded have none.

    Raises:
        OSError: the file cannot be written.
    """
    columns = {}
    if infos:
        # Offsets are the keys of a sidecar: they are those of members in any copy of the tar file.
        columns = columns_of_infos(list(infos), list(infos.values()))
    members = sidecar.members
    columns["name.content"] = members.names.content
    columns["name.end"] = members.names.ends
    columns |= columns_of_records(members.locations, "place.")
    columns |= columns_of_records(members.headers, "header.")
    reasons = []
    for skip in sidecar.skipped:
        assert isinstance(skip.path, TarMember)
        reasons.append((skip.path.name, skip.path.offset, skip.path.size, skip.reason))
    with open_bytes(archive, reads="headers") as opened:
        begin_digest = _digest_of_begin(opened)
        end_digest = _digest_of_end(opened)
    metadata = {
        _FINGERPRINT: json.dumps(Fingerprint.of(archive)),
        _BEGIN_DIGEST: begin_digest,
        _END_DIGEST: end_digest,
        _SKIPPED: json.dumps(reasons),
        _HAS_ALL_INDICES: json.dumps(sidecar.has_all_indices),
    }
    beside, cached = sidecar_paths(archive)
    path = cached
    if isinstance(beside, Path) and os.access(beside.parent, os.W_OK):
        path = beside
    save_tensors(path, columns, metadata)


def open_sidecar(archive: File) -> IndexFile | None:
    """Return the sidecar of a tar file; None if there is none that fits, or it is damaged.

    One with all exact indices is preferred.
    """
    without_indices = None  # or with those of some members
    for place in sidecar_paths(archive):
        if isinstance(place, Path) and not place.is_file():
            continue
        try:
            file = open_local(place, IndexFile, reads="whole")
            if not _fits(file.metadata, archive):
                continue
            if json.loads(file.metadata[_HAS_ALL_INDICES]):
                return file
        except (DecodeError, *DAMAGE_ERRORS):
            continue
        if without_indices is None:
            without_indices = file
    return without_indices


def read_sidecar(archive: File) -> Sidecar | None:
    """Return the members of a tar file by its sidecar; None if there is none that fits, or it is damaged."""
    file = open_sidecar(archive)
    if file is None:
        return None
    try:
        names = StringColumn(file.column("name.content"), file.column("name.end"))
        locations = file.records(LOCATION, len(names), "place.")
        headers = file.records(HEADER, len(names), "header.")
        members = FileTable(names, StringColumn.empty(len(names)), locations, (archive,), headers)
        skipped = []
        for name, offset, size, reason in json.loads(file.metadata[_SKIPPED]):
            skipped.append(Skipped(TarMember(archive, name, offset, size), reason))
        return Sidecar(members, skipped, json.loads(file.metadata[_HAS_ALL_INDICES]))
    except DAMAGE_ERRORS:
        return None


def read_infos(archive: File) -> dict[int, VideoInfo]:
    """Return the exact indices in the sidecar of a tar file, by the offsets of members; none if it has no sidecar."""
    file = open_sidecar(archive)
    if file is None:
        return {}
    try:
        return file.infos(archive)
    except DAMAGE_ERRORS:
        return {}


def _fits(metadata: Mapping[str, str], archive: File) -> bool:
    """Return whether a sidecar is that of a tar file: of this file, as it was, or of a copy, which is compared.

    Of a copy at an address the beginning alone is compared: its end would take two more requests for each tar file.

    Args:
        metadata: What the sidecar says. One of an earlier version has neither the fingerprint nor the hash of the end.
        archive: The tar file.
    """
    if metadata.get(_FINGERPRINT) == json.dumps(Fingerprint.of(archive)):
        return True
    with open_bytes(archive, reads="headers") as opened:
        if metadata[_BEGIN_DIGEST] != _digest_of_begin(opened):
            return False
        if isinstance(archive, RemotePath) or _END_DIGEST not in metadata:
            return True
        return metadata[_END_DIGEST] == _digest_of_end(opened)


def _digest_of_begin(opened: SourceBytes) -> str:
    """Return a hash of the size and the beginning of an opened tar file."""
    opened.file.seek(0)
    content = opened.file.read(_BEGIN_BYTES)
    return hashlib.sha256(f"{opened.size}\n".encode() + content).hexdigest()


def _digest_of_end(opened: SourceBytes) -> str:
    """Return a hash of the end of an opened tar file."""
    opened.file.seek(max(0, opened.size - _END_BYTES))
    return hashlib.sha256(opened.file.read(_END_BYTES)).hexdigest()


class SidecarInfos:
    """The exact indices in the sidecars of tar files. Those that were used last stay open."""

    def __init__(self) -> None:
        self._open: Recent[File, IndexFile] = Recent(_NUM_OPEN)
        self._without_indices: set[File] = set()  # tar files

    def info(self, _key: int, source: Source) -> VideoInfo | None:
        """Return the exact index of a source; None if it is no member of a tar file with a sidecar that has it.

        Args:
            _key: The key of the source, which a sidecar does not have.
            source: The source.
        """
        if not isinstance(source, TarMember) or source.archive in self._without_indices:
            return None
        sidecar = self._open.get(source.archive)
        if sidecar is None:
            sidecar = open_sidecar(source.archive)
            if sidecar is None or len(sidecar.exact_keys) == 0:
                self._without_indices.add(source.archive)
                return None
            self._open.put(source.archive, sidecar)
        try:
            return sidecar.info(source.offset, source)
        except DAMAGE_ERRORS:
            return None
