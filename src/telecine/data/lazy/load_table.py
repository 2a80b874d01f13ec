"""Find the files of a data set, and read their headers alone, into a table."""

from __future__ import annotations

import logging
import math
import os
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telecine.base.checks import argument_error
from telecine.data.clip_frames import ClipFrames, warn_of_short
from telecine.data.errors import (
    ChangedError,
    DataError,
    Deadline,
    DecodeError,
    thread_errors,
)
from telecine.data.find import find_files, is_archive, nothing_found, segments_of
from telecine.data.fingerprint import UNKNOWN, Fingerprint
from telecine.data.lazy.file_table import FileTable, keys_of_members
from telecine.data.lazy.header import HEADER, NO_HEADER, Header, read_header
from telecine.data.lazy.index import LazyIndex
from telecine.data.lazy.saved_addresses import SavedAddresses
from telecine.data.lazy.saved_headers import SavedHeaders
from telecine.data.lazy.span_table import SpanTable
from telecine.data.lists import Segment
from telecine.data.mp4_tables import MAX_FRAMES
from telecine.data.paths import paths_of
from telecine.data.remote import look_up
from telecine.data.source import (
    RemotePath,
    Skipped,
    Source,
    TarMember,
    check_frame,
    file_of,
    kind_of,
)
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_CHUNK = 4096  # files whose headers are read at once
_STATED = ("num_frames", "fps", "width", "height")  # columns that describe a file
_MAX_SIDE = 2**31 - 1  # pixels, of a frame that a list describes
_FPS_TOLERANCE = 1e-3  # of rates in two lines of a list, as a fraction
_SECONDS_BETWEEN_SAVES = 60.0


@dataclass(frozen=True)
class DataTable:
    """A data set by the headers of its files, and the exact indices of those that were read."""

    spans: SpanTable
    store: LazyIndex
    skipped: list[Skipped]
    """Files whose headers cannot be read, and segments without frames."""

    def log_too_short(self, frames: ClipFrames) -> int:
        """Log and count the videos that are too short for a clip by their headers, as `clip_frames.log_too_short`."""
        spans = self.spans
        is_video = np.zeros(len(spans.files), np.bool_)
        is_video[spans.file] = ~spans.is_image
        is_short = is_video.copy()
        is_short[spans.file[spans.num_starts(frames) > 0]] = False
        short = np.flatnonzero(is_short)
        texts = []
        for path, header in zip(spans.files.paths(short), spans.files.headers[short], strict=True):
            texts.append(f"{path} ({header['num_frames']} frames at {header['fps']:.3g} a second)")
        warn_of_short(texts, int(is_video.sum()), frames)
        return len(short)


def load_table(
    path: str | PathLike[str] | Sequence[str | PathLike[str]],
    config: ClipConfig,
    *,
    name: str = "data",
) -> DataTable:
    """Find videos, images and arrays, and read their headers. These are kept for the next run.

    A list may have the columns `num_frames` and `fps`, and `height` and `width`: its files are then not opened.

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
    store = LazyIndex(paths[0], config, paths[1:])
    reader = _TableReader(store, config, counts_once=len(paths) > 1)
    try:
        for one_path in paths:
            num_before = reader.num_found
            reader.add_path(one_path, name)
            if reader.num_found == num_before:
                raise nothing_found(one_path, name)
        table = reader.table()
    except ChangedError:
        reader.forget_addresses()
        raise
    finally:
        reader.save()  # also after an interrupt, so that finished work is kept
    if len(table.spans) == 0:
        got = f"{len(table.skipped)} that cannot be read: {Skipped.listed(table.skipped)}"
        remedy = "Check that they are complete and that other programs show them."
        raise argument_error(name, "at least one decodable file", got, remedy, DataError)
    if table.skipped:
        logger.warning("skipped %d files: %s", len(table.skipped), Skipped.listed(table.skipped))
    return table


class _TableReader:
    """Reads the headers of segments' files into columns."""

    def __init__(self, store: LazyIndex, config: ClipConfig, *, counts_once: bool) -> None:
        self.num_found = 0  # files, members and segments
        self._store = store
        self._counts_once = counts_once  # whether equal spans count once
        self._config = config
        self._addresses = store.saved_addresses()
        self._used_addresses: list[SavedAddresses] = []  # of files that lists name
        self._asks_servers = False  # whether the addresses that are kept lack some
        self._last_save = time.monotonic()
        self._is_complete = False  # whether all files are in the table
        self._parts: list[FileTable] = []
        self._keys = array("q")  # of all files
        self._row_of: dict[Source, int] = {}  # of the files of the last chunk
        self._stated: dict[Source, Header | None] = {}  # of the files of the last chunk
        self._missing: set[Source] = set()  # files that do not exist
        self._skipped: list[Skipped] = []
        self._pending: list[Segment] = []  # segments whose files are not in the table yet
        # Of all segments:
        self._files = array("q")
        self._bounds = array("d")  # four of each segment; empty as long as no segment has one
        self._groups = array("i")
        self._group_names: dict[str, int] = {"": 0}

    @cached_property
    def _saved(self) -> SavedHeaders:
        return self._store.saved_headers()

    @cached_property
    def _saved_of_others(self) -> list[tuple[LazyIndex, SavedHeaders]]:
        return [(other, other.saved_headers()) for other in self._store.others]

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
            members, skipped = self._store.members(archives)
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
                self._add(segments_of(file, self._config, keep_columns=_STATED))

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
            archive_keys.append(self._store.key_of(archive, Fingerprint.of(archive)))
        key_of_each = np.array(archive_keys, np.int64)[members.places["archive"]]
        begin = len(self._keys)
        count = len(members)
        self._keys.frombytes(keys_of_members(key_of_each, members.places["offset"]).tobytes())
        self._files.frombytes(np.arange(begin, begin + count, dtype=np.int64).tobytes())
        self._groups.extend(array("i", [0]) * count)
        if self._bounds:
            self._bounds.extend(array("d", [math.nan]) * (4 * count))
        self._parts.append(self._leave_out_refused(members))

    def _read_pending(self) -> None:
        """Read the headers of the files of pending segments that are not known."""
        if not self._pending:
            return
        segments = self._pending
        self._pending = []
        stated = self._stated_headers(segments)
        begin = len(self._keys)
        earlier_rows = self._row_of
        self._row_of = {}
        sources, versions = self._add_files(stated)
        for segment in segments:
            if segment.source in self._missing:
                continue
            row = self._row_of.get(segment.source)
            if row is None:
                row = earlier_rows[segment.source]
                self._row_of[segment.source] = row
            self._add_segment(segment, row)
        keys = np.array(self._keys[begin:], np.int64)
        headers = self._saved.find(keys)
        for other, saved in self._saved_of_others:
            rows = np.flatnonzero(headers["num_frames"] == 0)
            keys_there = []
            for row in rows.tolist():
                keys_there.append(other.key_of(sources[row], _fingerprint(sources[row])))
            headers[rows] = saved.find(np.array(keys_there, np.int64))
        for row, source in enumerate(sources):
            header = stated[source]
            if header is not None:
                headers[row] = header
        try:
            self._read_missing(sources, headers)
        finally:
            files = FileTable.of(sources, versions, headers)
            self._parts.append(self._leave_out_refused(files))
        if time.monotonic() - self._last_save >= _SECONDS_BETWEEN_SAVES:
            self.save()

    def _stated_headers(self, segments: Sequence[Segment]) -> dict[Source, Header | None]:
        """Return what the first line of each file that is not in the table yet says of it.

        Raises:
            DataError: another line of a file says something else.
        """
        stated: dict[Source, Header | None] = {}
        of_chunk: dict[Source, Header | None] = {}
        for segment in segments:
            source = segment.source
            if source in self._missing:
                continue
            header = _stated_header(segment)
            if source not in of_chunk:
                of_chunk[source] = self._stated.get(source, header)
            if source not in self._row_of:
                stated.setdefault(source, header)
            _check_agreement(source, of_chunk[source], header)
        self._stated = of_chunk
        return stated

    def _add_files(self, stated: Mapping[Source, Header | None]) -> tuple[list[Source], list[str]]:
        """Add the keys and rows of files, and return the files that exist, with their versions."""
        begin = len(self._keys)
        sources: list[Source] = []
        versions: list[str] = []
        looked_up = self._look_up([source for source, header in stated.items() if header is None])
        for named in stated:
            try:
                source = looked_up.get(named, named)
                if source is None:
                    raise FileNotFoundError("No such file")
                fingerprint = _fingerprint(source)
            except OSError as error:
                self._missing.add(named)
                self._skipped.append(Skipped(named, error.strerror or str(error)))
                continue
            self._row_of[named] = begin + len(sources)
            sources.append(source)
            versions.append(_version(source, fingerprint))
            self._keys.append(self._store.key_of(source, fingerprint))
        return sources, versions

    def _look_up(self, sources: Sequence[Source]) -> dict[Source, Source | None]:
        """Return files at addresses with what their servers say of them; None for one that does not exist."""

        def ask(file: RemotePath) -> RemotePath | None:
            try:
                return look_up(file, Deadline(file, self._config.timeout))
            except FileNotFoundError:
                return None

        answers: dict[Source, Source | None] = {}
        unknown = []
        answered = []  # about which a server was asked now or in an earlier run
        for source in sources:
            if not isinstance(source, RemotePath):
                continue
            if source.size is not None:  # a folder was listed
                answers[source] = source
                continue
            saved = self._addresses.find(source)
            if saved is None:
                unknown.append(source)
            else:
                answers[source] = saved
                answered.append(saved)
        try:
            with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
                for source, answer in zip(unknown, pool.map(ask, unknown), strict=True):
                    answers[source] = answer
                    if answer is not None and answer.size is not None:
                        answered.append(answer)
                        self._asks_servers = True
        finally:  # also if a server does not answer
            self._used_addresses.append(SavedAddresses.of(answered))
        return answers

    def forget_addresses(self) -> None:
        """Ask servers again in the next run: a file is not as they have said."""
        self._used_addresses.clear()
        self._asks_servers = False
        self._store.forget_addresses()

    def _add_segment(self, segment: Segment, row: int) -> None:
        """Add a segment of the file in a row."""
        bounds = [segment.start, segment.end, segment.start_frame, segment.end_frame]
        if bounds.count(None) < len(bounds) and not self._bounds:
            self._bounds = array("d", [math.nan]) * (len(bounds) * len(self._files))
        self._files.append(row)
        if bounds.count(None) < len(bounds) or self._bounds:
            self._bounds.extend(math.nan if bound is None else bound for bound in bounds)
        self._groups.append(self._group_names.setdefault(segment.group, len(self._group_names)))

    def _read_missing(self, sources: Sequence[Source], headers: NDArray[Any]) -> None:
        """Read the headers that have no frames yet, in place."""

        def read_or_skip(source: Source) -> Header | Skipped:
            try:
                return read_header(source, self._config)
            except DecodeError as error:
                return Skipped.of(source, error)

        missing = np.flatnonzero(headers["num_frames"] == 0).tolist()
        with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(read_or_skip, [sources[row] for row in missing])
            for row, result in zip(missing, results, strict=True):
                if isinstance(result, Skipped):
                    self._skipped.append(result)
                    headers[row] = NO_HEADER
                else:
                    headers[row] = result

    def _leave_out_refused(self, files: FileTable) -> FileTable:
        """Mark files that the settings refuse: saved headers may be of a run with others."""
        headers = files.headers
        is_checked = headers["width"].astype(np.int64) * headers["height"] > self._config.max_pixels
        if not self._config.has_colours:
            is_checked[:] = True
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

    def save(self) -> None:
        """Keep the headers for the next run: also those of earlier runs, until all files are in the table."""
        self._last_save = time.monotonic()
        if self._asks_servers:
            addresses = list(self._used_addresses)
            if not self._is_complete:
                addresses.append(self._addresses)
            self._store.save_addresses(SavedAddresses.joined(addresses))
            self._asks_servers = False
        all_keys = [np.empty(0, np.int64)]
        all_headers = [np.empty(0, HEADER)]
        begin = 0
        for part in self._parts:
            end = begin + len(part)
            if not part.archives:  # sidecars have the headers of members
                all_keys.append(np.array(self._keys[begin:end], np.int64))
                all_headers.append(part.headers)
            begin = end
        keys = np.concatenate(all_keys)
        headers = np.concatenate(all_headers)
        is_read = headers["digest"] != 0
        keys = keys[is_read]
        headers = headers[is_read]
        if len(keys) == 0:
            return
        if not self._is_complete:
            is_other = ~np.isin(self._saved.keys, keys)
            keys = np.concatenate([keys, self._saved.keys[is_other]])
            headers = np.concatenate([headers, self._saved.headers[is_other]])
        self._store.save_headers(SavedHeaders.of(keys, headers))

    def table(self) -> DataTable:
        """Return all that was read."""
        self._read_pending()
        self._is_complete = True
        files = FileTable.joined(self._parts)
        keys = np.array(self._keys, np.int64)
        # A file that several paths or distant lines of a list name has several rows. The first one counts.
        _, first_rows, row_numbers = np.unique(keys, return_index=True, return_inverse=True)
        first_rows = first_rows[row_numbers]
        _check_distant_lines(files, first_rows)
        file = first_rows[np.array(self._files, np.int64)]
        bounds = None
        if self._bounds:
            bounds = np.array(self._bounds, np.float64).reshape(len(file), 4)
        group = np.array(self._groups, np.int32)
        spans = SpanTable.of_segments(files, file, bounds, group, list(self._group_names))
        is_readable = files.headers["num_frames"][spans.file] > 0
        is_empty = is_readable & (spans.num_frames <= 0)
        for span in spans.take(is_empty):
            self._skipped.append(Skipped(span.info.source, "a segment without frames"))
        spans = spans.take(is_readable & ~is_empty)
        if self._counts_once:
            rows, codes = np.unique(spans.file, return_inverse=True)
            identities = files.identities(rows)[codes]
            places = np.stack([identities, spans.first_frame, spans.last_frame])
            _, first_rows = np.unique(places, axis=1, return_index=True)
            spans = spans.take(np.sort(first_rows))
        return DataTable(spans, self._store, self._skipped)


def _fingerprint(source: Source) -> Fingerprint:
    """Return the fingerprint of the file of a source, without asking a server for a file that a list describes."""
    if isinstance(source, RemotePath) and source.size is None:
        return UNKNOWN
    return Fingerprint.of(file_of(source))


def _version(source: Source, fingerprint: Fingerprint) -> str:
    if isinstance(source, TarMember):
        return ""
    if isinstance(source, RemotePath):
        return source.version
    return str(fingerprint.version)


def _stated_header(segment: Segment) -> Header | None:
    """Return what the line of a list says of its video or image; None if that is not enough, and of an array."""
    columns = segment.columns
    if "num_frames" not in columns:
        return None
    kind = kind_of(segment.source)
    try:
        num_frames = _whole_number(columns["num_frames"])
        fps = 1.0 if kind == "images" else float(str(columns["fps"]))
        width = _whole_number(columns.get("width", 1))
        height = _whole_number(columns.get("height", 1))
    except (KeyError, ValueError):
        return None
    has_frames = 0 < num_frames <= MAX_FRAMES and 0 < fps < math.inf
    if not has_frames or not 1 <= min(width, height) <= max(width, height) <= _MAX_SIDE:
        return None
    if kind == "arrays" or (kind == "images" and num_frames > 1):
        return None
    return Header(num_frames, fps, width, height, is_image=kind == "images")


def _check_distant_lines(files: FileTable, first_rows: NDArray[np.int64]) -> None:
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
        first = Header(*files.headers[first_rows[row]].item())
        _check_agreement(files[row], first, Header(*files.headers[row].item()))


def _whole_number(value: object) -> int:
    """Return a number that may be written as 12.0; raise a `ValueError` for another one."""
    number = float(str(value))
    if not number.is_integer():
        raise ValueError(f"{value} is not a whole number")
    return int(number)


def _check_agreement(source: Source, first: Header | None, other: Header | None) -> None:
    """Check that two lines of a list say the same of a file, or one of them nothing.

    Raises:
        DataError: They do not.
    """
    if first is None or other is None:
        return
    for name in _STATED:
        values = (getattr(first, name), getattr(other, name))
        if not math.isclose(*values, rel_tol=_FPS_TOLERANCE if name == "fps" else 0.0):
            contract = "the same in all lines of one file"
            got = f"{values[0]} and {values[1]} for {source}"
            remedy = "Columns of a list describe the whole file, also in the lines of its segments."
            raise argument_error(name, contract, got, remedy, DataError)
