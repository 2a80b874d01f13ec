"""Files as columns: a million of them take about a hundred bytes each, and no object."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from telecine.data.index_keys import MAX_KEY, keys_of_members
from telecine.data.lazy.header import HEADER, Header
from telecine.data.lazy.sorted_numbers import concatenate, distinct
from telecine.data.lazy.string_column import StringColumn
from telecine.data.paths import real_paths
from telecine.data.source import (
    File,
    RemotePath,
    Source,
    TarMember,
    VideoInfo,
    is_address,
)

_NO_ARCHIVE = -1
_UNKNOWN_SIZE = -1
LOCATION = np.dtype([("size", np.int64), ("archive", np.int32), ("offset", np.int64)])
"""The size of a file in bytes, -1 if it is unknown. A member of a tar file also has the number of the tar file, and the
position of its first byte there."""


@dataclass(frozen=True)
class FileTable(Sequence[Source]):
    """The files of a data set, one a row, with what their headers say."""

    names: StringColumn
    """The path or the address of a file, or the name of a member of a tar file."""
    versions: StringColumn
    """The version of a file at an address; the time of change of a local file in ns; empty for members."""
    locations: NDArray[Any]
    """The size of each file in bytes, and where a member is, of type `LOCATION`."""
    archives: tuple[File, ...]
    headers: NDArray[Any]
    """Of type `HEADER`."""

    @classmethod
    def of(
        cls,
        sources: Sequence[Source],
        headers: NDArray[Any],
        *,
        sizes: Sequence[int] | None = None,
        versions: Sequence[str] | None = None,
    ) -> FileTable:
        """Return a table of sources.

        Args:
            sources: Files, addresses, and members of tar files.
            headers: What the headers say, of type `HEADER`.
            sizes: The sizes of the files in bytes, -1 where unknown. By default, only members of tar files have one.
            versions: The version of each, see `FileTable.versions`; empty by default.
        """
        archives: dict[File, int] = {}
        names = []
        locations = np.zeros(len(headers), LOCATION)
        for row, source in enumerate(sources):
            if isinstance(source, TarMember):
                names.append(source.name)
                archive = archives.setdefault(source.archive, len(archives))
                locations[row] = (source.size, archive, source.offset)
            else:
                names.append(str(source))
                locations[row] = (_UNKNOWN_SIZE if sizes is None else sizes[row], _NO_ARCHIVE, 0)
        versions_column = StringColumn.empty(len(names))
        if versions is not None:
            versions_column = StringColumn.of(versions)
        return cls(StringColumn.of(names), versions_column, locations, tuple(archives), headers)

    @classmethod
    def of_infos(cls, infos: Sequence[VideoInfo]) -> FileTable:
        """Return a table of indexed sources, whose headers are exact. Their `digest` is valid in this process only."""
        headers = np.zeros(len(infos), HEADER)
        for row, info in enumerate(infos):
            digest = hash(info.digest) & MAX_KEY if info.digest else 0
            headers[row] = Header.of(info)._replace(digest=digest)
        return cls.of([info.source for info in infos], headers)

    @classmethod
    def joined(cls, parts: Sequence[FileTable]) -> FileTable:
        """Return the files of several tables, one after the other."""
        if len(parts) == 1:
            return parts[0]
        archives: list[File] = []
        locations = []
        for part in parts:
            moved = part.locations.copy()
            moved["archive"][moved["archive"] >= 0] += len(archives)
            locations.append(moved)
            archives.extend(part.archives)
        return cls(
            names=StringColumn.joined([part.names for part in parts]),
            versions=StringColumn.joined([part.versions for part in parts]),
            locations=concatenate(locations, LOCATION),
            archives=tuple(archives),
            headers=concatenate([part.headers for part in parts], HEADER),
        )

    def of_archives(self, begin: int, end: int) -> FileTable:
        """Return the members of tar files that follow each other, of a table that has those of one after the other.

        Args:
            begin: The number of the first tar file.
            end: That of the last one, plus one.
        """
        if (begin, end) == (0, len(self.archives)):
            return self
        first, last = np.searchsorted(self.locations["archive"], [begin, end])
        locations = self.locations[first:last].copy()
        locations["archive"] -= begin
        name_begin = self.names.ends[first - 1] if first > 0 else 0
        ends = self.names.ends[first:last]
        name_end = ends[-1] if len(ends) > 0 else name_begin
        return FileTable(
            names=StringColumn(self.names.content[name_begin:name_end], ends - name_begin),
            versions=StringColumn.empty(len(locations)),
            locations=locations,
            archives=self.archives[begin:end],
            headers=self.headers[first:last],
        )

    def __len__(self) -> int:
        return len(self.headers)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> list[Source]: ...
    def __getitem__(self, index: int | slice) -> Source | list[Source]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        return self._source(self.names[index], self.versions[index], self.locations[index].item())

    def __iter__(self) -> Iterator[Source]:
        return map(self._source, self.names, self.versions, self.locations.tolist())

    def _source(self, name: str, version: str, location: tuple[int, int, int]) -> Source:
        """Return the file in a row, by its columns."""
        size, archive, offset = location
        if archive != _NO_ARCHIVE:
            return TarMember(self.archives[archive], name, offset, size)
        if is_address(name):
            return RemotePath(name, None if size < 0 else size, version)
        return Path(name)

    @property
    def has_unknown_sizes(self) -> bool:
        """Whether the size of a file is unknown, as of one at an address that a list describes."""
        return bool((self.locations["size"] == _UNKNOWN_SIZE).any())

    def paths(self, rows: NDArray[np.integer[Any]]) -> Iterator[str]:
        """Yield the path or the address of files in order, those of members with the one of their tar file.

        Args:
            rows: The files, in increasing order.
        """
        is_used = np.zeros(len(self), np.bool_)
        is_used[rows] = True
        prefixes = [f"{archive}/" for archive in self.archives]
        codes = self.locations["archive"][is_used].tolist()
        for code, name in zip(codes, compress(self.names, is_used.tolist()), strict=True):
            yield name if code == _NO_ARCHIVE else prefixes[code] + name

    def common_beginning(self, rows: NDArray[np.integer[Any]]) -> str:
        """Return the longest beginning that the paths of files have in common.

        Args:
            rows: The files, one or more, in increasing order.
        """
        archives = distinct(self.locations["archive"][rows])
        if archives[0] != _NO_ARCHIVE:
            prefixes = [f"{self.archives[number]}/" for number in archives]
            common = os.path.commonprefix(prefixes)  # noqa: RUF071 - of any characters
            if common not in prefixes:  # they differ before the names of members
                return common
        common = next(self.paths(rows))
        for path in self.paths(rows):
            if not path.startswith(common):
                common = os.path.commonprefix([common, path])  # noqa: RUF071 - of any characters
        return common

    def release_pages(self) -> None:
        """Free the memory of columns that are mapped from a file. They are read again when they are asked for."""
        view: object = self.headers.base
        if not isinstance(view, memoryview) or not isinstance(view.obj, mmap.mmap):
            return
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            view.obj.madvise(mmap.MADV_DONTNEED)

    def process_local_ids(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return a hash for each file, equal for all names of one, as `resolve_source` tells them.

        It is valid in this process only.

        Args:
            rows: The files, in increasing order.
        """
        archive = self.locations["archive"][rows]
        is_member = archive != _NO_ARCHIVE
        identities = np.empty(len(rows), np.int64)
        paths = real_paths(self.paths(rows[~is_member]))
        identities[~is_member] = np.fromiter((hash(path) for path in paths), np.int64)
        archives = real_paths(str(archive) for archive in self.archives)
        keys = np.array([hash(path) for path in archives], np.int64)
        # A tar file may have two members of one name, but not at one place.
        offsets = self.locations["offset"][rows[is_member]]
        identities[is_member] = keys_of_members(keys[archive[is_member]], offsets)
        return identities

    def member_keys(self, archive_keys: Sequence[int]) -> NDArray[np.int64]:
        """Return the keys of all files, which are members of tar files, see `SavedIndex.key_of`.

        Args:
            archive_keys: The key of each tar file.
        """
        key_of_archive = np.array(archive_keys, np.int64)[self.locations["archive"]]
        return keys_of_members(key_of_archive, self.locations["offset"])

    def header(self, index: int) -> Header:
        """Return the header of a file."""
        return Header.of_row(self.headers[index])
