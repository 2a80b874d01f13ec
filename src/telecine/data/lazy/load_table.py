"""Find the files of a data set, and read their headers alone, into a table."""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from telecine.base.checks import argument_error
from telecine.base.terminal import with_progress
from telecine.data.errors import (
    ChangedError,
    DataError,
    DecodeError,
    thread_errors,
)
from telecine.data.find import find_files, is_archive, nothing_found, segments_of
from telecine.data.fingerprint import UNKNOWN, Fingerprint
from telecine.data.lazy.address_book import AddressBook
from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.header import NO_HEADER, Header, read_header
from telecine.data.lazy.saved_headers import SavedHeaders
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lazy.segment_columns import SegmentColumns
from telecine.data.lazy.shards import ShardWriter
from telecine.data.lazy.stated_header import (
    STATED,
    check_agreement,
    check_distant_lines,
    stated_header,
)
from telecine.data.lists import LIST_SUFFIXES, Segment
from telecine.data.paths import paths_of
from telecine.data.source import (
    RemotePath,
    Skipped,
    Source,
    TarMember,
    check_frame,
    file_of,
)
from telecine.data.span_table import SpanTable
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_CHUNK = 4096  # files whose headers are read at once
_SECONDS_BETWEEN_SAVES = 60.0


@dataclass(frozen=True)
class DataTable:
    """A data set by the headers of its files, and the exact indices of those that were read."""

    spans: SpanTable
    saved_index: SavedIndex
    skipped: list[Skipped]
    """Files whose headers cannot be read, and segments without frames."""


def load_table(
    path: str | PathLike[str] | Sequence[str | PathLike[str]],
    config: ClipConfig,
    *,
    name: str = "data",
) -> DataTable:
    """Find videos, images and arrays, and read their headers. These are kept for the next run.

    A list may have the columns `num_frames` and `fps`, and `height` and `width`: its files are then not opened.

    A run indexes all files nevertheless if the end of each is held out, as of fewer than ten videos, see `split_table`.

    Args:
        path: As `telecine.data.load_spans`.
        config: Files with larger frames than its `max_pixels` are skipped.
        name: Name of the argument in error messages.

    Raises:
        DataError: nothing is found at one of the paths, no header can be read, or a list is not valid.
    """
    paths = paths_of(path)
    if not paths:
        raise argument_error(name, "a path", "an empty list", "Name some videos.", DataError)
    saved_index = SavedIndex(paths[0], config, paths[1:])
    reader = _TableReader(saved_index)
    is_complete = False
    try:
        for one_path in paths:
            num_before = reader.num_found
            reader.add_path(one_path, name)
            if reader.num_found == num_before:
                raise nothing_found(one_path, name)
        table = reader.table(counts_once=len(paths) > 1)
        is_complete = True
    except ChangedError:
        reader.addresses.forget()
        raise
    finally:
        # Also after an interrupt, so that finished work is kept.
        reader.save(is_complete=is_complete)
    if len(table.spans) == 0:
        got = f"{len(table.skipped)} that cannot be read: {Skipped.listed(table.skipped)}"
        contract = "at least one decodable file"
        raise argument_error(name, contract, got, Skipped.remedy(table.skipped), DataError)
    if table.skipped:
        logger.warning("skipped %d files: %s", len(table.skipped), Skipped.listed(table.skipped))
    return table


class _NewFile(NamedTuple):
    """A file that is not in the table yet."""

    source: Source
    fingerprint: Fingerprint
    stated: Header | None
    """What a list says of it."""


class _TableReader:
    """Reads the headers of segments' files into columns."""

    def __init__(self, saved_index: SavedIndex) -> None:
        self.num_found = 0  # files, members and segments
        self.addresses = AddressBook(saved_index)
        self._saved_index = saved_index
        self._config = saved_index.config
        self._writer = ShardWriter(saved_index.shards, is_required=False)
        self._last_save = time.monotonic()
        self._parts: list[FileTable] = []
        self._keys = array("q")  # of the files of all parts
        self._segments = SegmentColumns()
        self._pending: list[Segment] = []  # segments that are not in the table yet
        self._has_lists = False
        self._row_of_hash: dict[int, int] = {}
        """Of files in lists that these do not describe, by the hash of the name: lines of a file may be far apart."""
        # Of the files of the last chunk of segments: the row, and what the first line of a list says.
        self._row_of: dict[Source, int] = {}
        self._stated: dict[Source, Header | None] = {}
        self._missing: set[Source] = set()  # files that do not exist
        self._skipped: list[Skipped] = []

    @cached_property
    def _saved(self) -> SavedHeaders:
        return self._saved_index.shards.headers()

    @cached_property
    def _saved_of_others(self) -> list[tuple[SavedIndex, SavedHeaders]]:
        return [(other, other.shards.headers()) for other in self._saved_index.others]

    def add_path(self, path: str, name: str) -> None:
        """Add all files at a path.

        Args:
            path: A path, a pattern or an address.
            name: Name of the argument in error messages.
        """
        files = find_files(path, name=name)
        archives = [file for file in files if is_archive(file)]
        members = FileTable.joined([])
        if archives:
            members, skipped = self._saved_index.members(archives)
            self._skipped.extend(skipped)
            self.num_found += len(members) + len(skipped)
        num_added = 0  # tar files
        for are_archives, group in groupby(files, key=is_archive):
            if are_archives:
                begin = num_added
                num_added += len(list(group))
                self._add_members(members.of_archives(begin, num_added))
                continue
            for file in group:
                self._has_lists = self._has_lists or file.suffix.lower() in LIST_SUFFIXES
                self._add(segments_of(file, self._config, keep_columns=STATED))

    def _add(self, segments: Iterable[Segment]) -> None:
        """Add segments. The headers of their files are read some thousands at a time."""
        for segment in segments:
            self.num_found += 1
            self._pending.append(segment)
            if len(self._pending) == _CHUNK:
                self._read_pending()

    def _add_members(self, members: FileTable) -> None:
        """Add all members of tar files."""
        self._read_pending()
        archive_keys = []
        for archive in members.archives:
            archive_keys.append(self._saved_index.key_of(archive, Fingerprint.of(archive)))
        begin = len(self._keys)
        self._keys.frombytes(members.member_keys(archive_keys).tobytes())
        self._segments.add_files(range(begin, begin + len(members)))
        self._parts.append(self._mark_refused(members))

    def _read_pending(self) -> None:
        """Add the pending segments and their files, whose headers are read unless an earlier chunk had the file.

        Raises:
            DataError: two lines of a list contradict each other, or a file or a server takes too long.
        """
        segments = [segment for segment in self._pending if segment.source not in self._missing]
        self._pending = []
        if not segments:
            return
        stated = self._first_stated(segments)
        row_of = self._known_rows(stated)
        new_files = self._look_up(
            {source: header for source, header in stated.items() if source not in row_of}
        )
        first_row = len(self._keys)
        for row, (source, file) in enumerate(new_files.items(), start=first_row):
            row_of[source] = row
            if self._has_lists and file.stated is None:
                self._row_of_hash[hash(source)] = row
        self._row_of = row_of
        self._stated = stated
        for segment in segments:
            if segment.source in row_of:
                self._segments.add(segment, row_of[segment.source])
        files = list(new_files.values())
        keys = np.array(
            [self._saved_index.key_of(file.source, file.fingerprint) for file in files], np.int64
        )
        headers = self._saved_or_stated(files, keys)
        try:
            self._read_missing(files, keys, headers)
        finally:
            table = FileTable.of(
                [file.source for file in files],
                headers,
                sizes=[file.fingerprint.size for file in files],
                versions=[_version(file) for file in files],
            )
            self._parts.append(self._mark_refused(table))
            self._keys.extend(keys.tolist())
        if time.monotonic() - self._last_save >= _SECONDS_BETWEEN_SAVES:
            self.save(is_complete=False)

    def _known_rows(self, stated: Mapping[Source, Header | None]) -> dict[Source, int]:
        """Return the rows of files that are in the table.

        Args:
            stated: What a list says of each file.
        """
        rows = {}
        for source, header in stated.items():
            row = self._row_of.get(source)
            if row is None and header is None:
                row = self._row_of_hash.get(hash(source))
            if row is not None:
                rows[source] = row
        return rows

    def _first_stated(self, segments: Sequence[Segment]) -> dict[Source, Header | None]:
        """Return what the first line of a file says of it, for all files of segments, in order.

        Raises:
            DataError: another line of a file says something else.
        """
        first: dict[Source, Header | None] = {}
        for segment in segments:
            source = segment.source
            header = stated_header(segment)
            if source not in first:
                first[source] = self._stated.get(source, header)
            check_agreement(source, first[source], header)
        return first

    def _look_up(self, stated: Mapping[Source, Header | None]) -> dict[Source, _NewFile]:
        """Return the files that exist, by their names; and note the others.

        Args:
            stated: What a list says of each file. No server is asked about one that it describes.
        """
        looked_up = self.addresses.look_up(
            source for source, header in stated.items() if header is None
        )
        new_files = {}
        for named, header in stated.items():
            try:
                source = looked_up.get(named, named)
                if source is None:
                    raise FileNotFoundError("No such file")
                new_files[named] = _NewFile(source, _fingerprint(source), header)
            except OSError as error:
                self._missing.add(named)
                self._skipped.append(Skipped(named, error.strerror or str(error)))
        return new_files

    def _saved_or_stated(self, files: Sequence[_NewFile], keys: NDArray[np.int64]) -> NDArray[Any]:
        """Return headers by a list or by earlier runs; others have no frames.

        Args:
            files: The files.
            keys: The key of each, see `SavedIndex.key_of`.
        """
        headers = self._saved.find(keys)
        for other, saved in self._saved_of_others:
            rows = np.flatnonzero(headers["num_frames"] == 0)
            keys_there = []
            for row in rows.tolist():
                keys_there.append(other.key_of(files[row].source, files[row].fingerprint))
            headers[rows] = saved.find(np.array(keys_there, np.int64))
        for row, file in enumerate(files):
            if file.stated is not None:
                headers[row] = file.stated
        return headers

    def _read_missing(
        self, files: Sequence[_NewFile], keys: NDArray[np.int64], headers: NDArray[Any]
    ) -> None:
        """Read the headers that have no frames yet, in place.

        Args:
            files: The files.
            keys: The key of each.
            headers: The header of each.
        """

        def read_or_skip(source: Source) -> Header | Skipped:
            try:
                return read_header(source, self._config)
            except DecodeError as error:
                return Skipped.of(source, error)

        missing = np.flatnonzero(headers["num_frames"] == 0).tolist()
        if not missing:
            return
        description = "reading headers"
        if self._keys:
            description += f" after those of {len(self._keys)} files"
        with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(read_or_skip, [files[row].source for row in missing])
            results = with_progress(results, description, total=len(missing))
            for row, result in zip(missing, results, strict=True):
                if isinstance(result, Skipped):
                    self._skipped.append(result)
                    headers[row] = NO_HEADER
                else:
                    headers[row] = result
                    if result.digest != 0:  # no array
                        self._writer.add(int(keys[row]), result, None)

    def _mark_refused(self, files: FileTable) -> FileTable:
        """Return files, those without a header that the settings refuse: a run with others may have saved it."""
        headers = files.headers
        is_checked = headers["width"].astype(np.int64) * headers["height"] > self._config.max_pixels
        if not self._config.has_colours:
            is_checked[:] = True  # only arrays can have these channels, whatever their size
        for row in np.flatnonzero(is_checked & (headers["num_frames"] > 0)).tolist():
            source = files[row]
            try:
                width = int(headers["width"][row])
                height = int(headers["height"][row])
                check_frame(source, width, height, self._config)
            except DecodeError as error:
                self._skipped.append(Skipped.of(source, error))
                if headers is files.headers:  # which may be mapped from a file
                    headers = headers.copy()
                headers[row] = NO_HEADER
        return replace(files, headers=headers)

    def save(self, *, is_complete: bool) -> None:
        """Keep new headers, and answers of servers, for the next run. A failure is logged.

        Args:
            is_complete: Whether all files are in the table. What servers have said of others is then removed.
        """
        self._last_save = time.monotonic()
        self.addresses.save(is_complete=is_complete)
        self._writer.write()

    def table(self, *, counts_once: bool) -> DataTable:
        """Return all that was read.

        Args:
            counts_once: Whether equal spans of one file count once, also under other names of it.
        """
        self._read_pending()
        files = FileTable.joined(self._parts)
        keys = np.array(self._keys, np.int64)
        # A file that several paths or distant lines of a list name has several rows. The first one counts.
        _, first_places, codes = np.unique(keys, return_index=True, return_inverse=True)
        first_rows = first_places[codes]
        check_distant_lines(files, first_rows)
        spans = self._segments.spans(files, first_rows)
        is_readable = files.headers["num_frames"][spans.file] > 0
        is_empty = is_readable & (spans.num_frames <= 0)
        for row in spans.file[is_empty].tolist():
            self._skipped.append(Skipped(files[row], "a segment without frames"))
        spans = spans.take(is_readable & ~is_empty)
        if counts_once:
            rows, codes = np.unique(spans.file, return_inverse=True)
            identities = files.process_local_ids(rows)[codes]
            places = np.stack([identities, spans.first_frame, spans.last_frame])
            _, kept = np.unique(places, axis=1, return_index=True)
            spans = spans.take(np.sort(kept))
        return DataTable(spans, self._saved_index, self._skipped)


def _fingerprint(source: Source) -> Fingerprint:
    """Return the fingerprint of the file of a source, without asking a server for a file that a list describes."""
    if isinstance(source, RemotePath) and source.size is None:
        return UNKNOWN
    return Fingerprint.of(file_of(source))


def _version(file: _NewFile) -> str:
    """Return the version of a file, see `FileTable.versions`."""
    if isinstance(file.source, TarMember):
        return ""
    if isinstance(file.source, RemotePath):
        return file.source.version
    return str(file.fingerprint.version)
