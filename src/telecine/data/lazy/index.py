"""The index of `clips.index: lazy`: exact indices, made when a video is first drawn, and shared with later runs."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from telecine.base.files import remove_partial
from telecine.data.errors import DecodeError, is_of_system, thread_errors
from telecine.data.fingerprint import Fingerprint, look_up_source
from telecine.data.index import index_video
from telecine.data.index_paths import index_paths
from telecine.data.lazy.file_table import FileTable, keys_of_members
from telecine.data.lazy.header import HEADER
from telecine.data.lazy.index_file import DAMAGE_ERRORS, IndexFile, columns_of_infos, save_tensors
from telecine.data.lazy.mapped_members import (
    key_of_archives,
    map_members,
    remove_unused,
    write_members,
)
from telecine.data.lazy.sidecar import (
    Sidecar,
    has_arrays,
    open_sidecar,
    read_sidecar,
    scan_archive,
    write_sidecar,
)
from telecine.data.lazy.string_column import StringColumn
from telecine.data.paths import deepest_folder
from telecine.data.source import (
    File,
    RemotePath,
    Skipped,
    Source,
    TarMember,
    VideoInfo,
    check_frame,
    is_address,
)
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

FOLDER_SUFFIX = ".d"
_HEADERS = "headers"
_ADDRESSES = "addresses"
_SHARDS = "shards"
_MEMBERS = "members"
_FAILURE = "failure"
_LIMITS = "limits"
_SECONDS_OF_A_WRITE = 3600.0  # what is older, a process that was killed has left
_NUM_RECENT = 256  # indices that a process keeps
_NUM_SCANS = 4  # tar files that are scanned at once
_NUM_OPEN = 64  # sidecars and shards that a process keeps open


class SavedHeaders(NamedTuple):
    """Headers by their keys, which are sorted."""

    keys: NDArray[np.int64]
    headers: NDArray[Any]

    def find(self, keys: NDArray[np.int64]) -> NDArray[Any]:
        """Return the headers of keys; without frames where they are not known."""
        headers = np.zeros(len(keys), HEADER)
        if len(self.keys) > 0:
            rows = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
            is_known = self.keys[rows] == keys
            headers[is_known] = self.headers[rows[is_known]]
        return headers


class SavedAddresses(NamedTuple):
    """What servers have said of single files, by the keys of their addresses, which are sorted."""

    keys: NDArray[np.int64]
    sizes: NDArray[np.int64]
    versions: StringColumn

    @classmethod
    def of(cls, files: Sequence[RemotePath]) -> SavedAddresses:
        """Return what files with their sizes and versions say."""
        keys = np.array([_key_of_address(file.url) for file in files], np.int64)
        order = np.argsort(keys)
        sizes = np.array([files[place].size for place in order], np.int64)
        return cls(keys[order], sizes, StringColumn.of(files[place].version for place in order))

    @classmethod
    def joined(cls, parts: Sequence[SavedAddresses]) -> SavedAddresses:
        """Return what several say. Of an address that is in two, the first counts."""
        keys = np.concatenate([np.empty(0, np.int64), *(part.keys for part in parts)])
        sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)])
        versions = StringColumn.joined([part.versions for part in parts])
        keys, places = np.unique(keys, return_index=True)
        return cls(
            keys, sizes[places], StringColumn.of(versions[place] for place in places.tolist())
        )

    def find(self, file: RemotePath) -> RemotePath | None:
        """Return a file with its size and version; None if they are not known."""
        key = _key_of_address(file.url)
        row = int(np.searchsorted(self.keys, key))
        if row == len(self.keys) or self.keys[row] != key:
            return None
        return RemotePath(file.url, int(self.sizes[row]), self.versions[row])


class Shard(NamedTuple):
    """A file that `telecine data index` has written."""

    path: Path
    keys: NDArray[np.int64]
    """The keys of its exact indices, sorted."""


class LazyIndex:
    """The indices of a data set in a folder beside it, or in the user's cache folder. Any process may add to it.

    If the data cannot be written to, the folder is in the cache, and one beside the data is read, too.

    | file | content |
    |---|---|
    | `headers` | what the headers of all files say |
    | `members/*` | the members of all tar files, as their sidecars have them |
    | `addresses` | sizes and versions of files that lists name by their addresses |
    | `shards/*` | exact indices that `telecine data index` has made |
    | `ab/ab01...` | the exact index of one file that a run has drawn from, or why it has none |

    A file is found by a key: a hash of its path relative to the data, its size and its time of change or version.

    Args:
        data: A path, a pattern or an address, as `telecine.data.load_spans`.
        config: The limits of `index_video`.
        others: Other paths. What is saved of them is read where the first path has nothing.
    """

    def __init__(self, data: str, config: ClipConfig, others: Sequence[str] = ()) -> None:
        paths = index_paths(data)
        self._folders = [path.with_name(path.name + FOLDER_SUFFIX) for path in paths]
        self.folder = self._folders[0]
        self.config = config
        self.others = [LazyIndex(other, config) for other in others]
        root = paths[0].parent if is_address(data) else deepest_folder(Path(data))
        self._root = str(root)
        self._prefix = os.path.join(self._root, "")
        self._recent: dict[int, VideoInfo] = {}  # in the order of their last use
        self._failures: dict[int, str] = {}  # why files have no index
        self._shards: list[Shard] | None = None
        self._without_indices: set[File] = set()  # tar files whose sidecars have none
        self._open: dict[
            File, IndexFile
        ] = {}  # shards by their paths, and sidecars by those of their tar files
        self._is_writable = True

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_recent": {}, "_shards": None, "_open": {}}

    def key_of(self, source: Source, fingerprint: Fingerprint) -> int:
        """Return the key of a source, in 63 bits.

        Args:
            source: The source.
            fingerprint: That of its file.
        """
        if isinstance(source, TarMember):
            archive_key = self.key_of(source.archive, fingerprint)
            return int(keys_of_members(np.array([archive_key]), np.array([source.offset]))[0])
        name = str(source)
        if name.startswith(self._prefix):
            name = name.removeprefix(self._prefix)
        elif not is_address(name):
            name = os.path.relpath(name, self._root)
        text = f"{name}\n{tuple(fingerprint)}"
        digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def members(self, archives: Sequence[File]) -> tuple[FileTable, list[Skipped]]:
        """Return the members of tar files by their sidecars. A sidecar is written where there is none.

        All are kept in one file, which later runs map into memory.

        Returns:
            The members, and those whose header cannot be read.

        Raises:
            DataError: a tar file is not read in time.
        """
        name = key_of_archives(archives)
        for folder in self._folders:
            with suppress(*DAMAGE_ERRORS):
                return map_members(folder / _MEMBERS / name, archives)
        sidecars = self._sidecars_of(archives)
        changing = [archive for archive, sidecar in sidecars.items() if not _is_lasting(sidecar)]
        if not changing:
            path = self.folder / _MEMBERS / name
            with suppress(*DAMAGE_ERRORS):  # another process may have written it meanwhile
                return map_members(path, archives)
            try:
                _remove_left(path.parent)
                remove_unused(path.parent)
                path.unlink(missing_ok=True)  # it is damaged
                write_members(path, list(sidecars.values()))
                return map_members(path, archives)
            except (OSError, ValueError) as error:
                logger.warning("the members of tar files cannot be saved: %s", error)
        elif len(changing) < len(archives):
            text = "each run reads the sidecars of all tar files, as %d have arrays or cannot be read whole: %s"
            logger.warning(text, len(changing), changing[0])
        parts = []
        skipped = []
        for archive, sidecar in sidecars.items():
            parts.append(replace(sidecar.members, archives=(archive,)))
            skipped.extend(sidecar.skipped)
        return FileTable.joined(parts), skipped

    def _sidecars_of(self, archives: Sequence[File]) -> dict[File, Sidecar]:
        """Return the sidecars of tar files. Those that have none are scanned, some at once, and get one.

        Raises:
            DataError: a tar file is not read in time.
        """
        with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
            saved = dict(zip(archives, pool.map(read_sidecar, archives), strict=True))
        missing = [archive for archive, sidecar in saved.items() if sidecar is None]
        num_threads = min(_NUM_SCANS, os.cpu_count() or 1, len(missing))
        # Scans share the processor and the disk: all of them together may take as long as one after the other.
        config = replace(self.config, timeout=self.config.timeout * max(num_threads, 1))

        def scan(archive: File) -> Sidecar:
            sidecar = scan_archive(archive, config)
            if _is_lasting(sidecar):
                try:
                    write_sidecar(archive, sidecar)
                except OSError as error:
                    logger.warning("the headers of %s cannot be saved: %s", archive, error)
            return sidecar

        with thread_errors(), ThreadPoolExecutor(max(num_threads, 1)) as pool:
            scanned = dict(zip(missing, pool.map(scan, missing), strict=True))
        return {archive: sidecar or scanned[archive] for archive, sidecar in saved.items()}

    def info(self, source: Source) -> VideoInfo:
        """Return the exact index of a source. It is made, and kept for all processes, when it is first asked for.

        Raises:
            DecodeError: see `index_video`.
            DataError: see `index_video`.
        """
        looked_up = look_up_source(source, self.config)
        if looked_up is None:
            return index_video(source, self.config)
        source, fingerprint = looked_up
        key = self.key_of(source, fingerprint)
        info = self._recent.get(key) or self.saved_info(key, source)
        for other in self.others:
            if info is None:
                info = other.saved_info(other.key_of(source, fingerprint), source)
        if info is None:
            info = self._index(key, source)
        check_frame(source, info.width, info.height, self.config)
        self._recent.pop(key, None)
        if len(self._recent) == _NUM_RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[key] = info  # as the last one
        return info

    def _index(self, key: int, source: Source) -> VideoInfo:
        """Index a source, unless that has failed before, and keep the result or the reason.

        Raises:
            DecodeError: see `index_video`.
            DataError: see `index_video`.
        """
        reason = self._failures.get(key) or self._saved_failure(key)
        if reason is not None:
            self._failures[key] = reason
            raise DecodeError(f"{source}: {reason}")
        try:
            info = index_video(source, self.config)
        except DecodeError as error:
            if not is_of_system(error):
                reason = Skipped.of(source, error).reason
                self._failures[key] = reason
                self._save(key, {}, {_FAILURE: reason, _LIMITS: self._limits()})
            raise
        self._save(key, columns_of_infos([key], [info]), {})
        return info

    def _saved_failure(self, key: int) -> str | None:
        """Return why a source has no index by the settings of this run; None if that is not known."""
        for file in self._files_of(key):
            if file.metadata.get(_LIMITS) == self._limits():
                return file.metadata.get(_FAILURE)
        return None

    def _limits(self) -> str:
        """Return what decides whether a file can be indexed, besides its content."""
        return f"{self.config.max_pixels} {self.config.has_colours} {av.__version__}"

    def saved_info(self, key: int, source: Source) -> VideoInfo | None:
        """Return the index of a source from the folder; None if it is not there, or damaged.

        Args:
            key: The key of the source.
            source: The source.
        """
        if isinstance(source, TarMember):
            info = self._info_of_member(source)
            if info is not None:
                return info
        for shard in self.shards():
            row = int(np.searchsorted(shard.keys, key))
            if row == len(shard.keys) or shard.keys[row] != key:
                continue
            with suppress(*DAMAGE_ERRORS):
                if shard.path not in self._open:
                    self._keep_open(shard.path, IndexFile(shard.path))
                info = self._open[shard.path].info(key, source)
                if info is not None:
                    return info
        for file in self._files_of(key):
            with suppress(*DAMAGE_ERRORS):
                info = file.info(key, source)
                if info is not None:
                    return info
        return None

    def _files_of(self, key: int) -> Iterator[IndexFile]:
        """Yield what runs have saved of a file."""
        for folder in self._folders:
            path = _path_of(folder, key)
            if path.is_file():
                with suppress(*DAMAGE_ERRORS):
                    yield IndexFile(path)

    def _info_of_member(self, member: TarMember) -> VideoInfo | None:
        if member.archive in self._without_indices:
            return None
        if member.archive not in self._open:
            sidecar = open_sidecar(member.archive)
            if sidecar is None or len(sidecar.keys) == 0:
                self._without_indices.add(member.archive)
                return None
            self._keep_open(member.archive, sidecar)
        try:
            return self._open[member.archive].info(member.offset, member)
        except DAMAGE_ERRORS:
            return None

    def _keep_open(self, path: File, file: IndexFile) -> None:
        """Keep a file open for later calls, in place of the one that was opened first if there are many."""
        if len(self._open) >= _NUM_OPEN:
            self._open.pop(next(iter(self._open)), None)
        self._open[path] = file

    def shards(self) -> list[Shard]:
        """Return the files that `telecine data index` has written; those of another version or damaged are left out."""
        if self._shards is None:
            self._shards = []
            for folder in self._folders:
                for path in sorted((folder / _SHARDS).glob("[!.]*")):
                    try:
                        self._shards.append(Shard(path, IndexFile(path).keys))
                    except DAMAGE_ERRORS as error:
                        logger.warning("%s is not used: %s", path, error)
        return self._shards

    def saved_keys(self) -> NDArray[np.int64]:
        """Return the keys of the files in all shards, sorted."""
        keys = []
        for shard in self.shards():
            with suppress(*DAMAGE_ERRORS):
                keys.append(IndexFile(shard.path).column("key"))
        return np.unique(np.concatenate([np.empty(0, np.int64), *keys]))

    def write_shard(
        self, keys: NDArray[np.int64], headers: NDArray[Any], infos: Mapping[int, VideoInfo]
    ) -> None:
        """Write the headers and exact indices of many files into a new file.

        Args:
            keys: The key of each file.
            headers: The header of each file, of type `HEADER`.
            infos: Exact indices by key. Files that cannot be decoded have none.

        Raises:
            OSError: the file cannot be written.
        """
        columns = columns_of_infos(list(infos), list(infos.values()))
        columns |= _header_columns(keys, headers)
        name = hashlib.blake2b(columns["key"].tobytes(), digest_size=8).hexdigest()
        _remove_left(self.folder / _SHARDS)
        save_tensors(self.folder / _SHARDS / name, columns, {})

    def remove_shards(self, keys: NDArray[np.int64]) -> None:
        """Remove the shards whose files, one or more, all have their indices elsewhere now.

        Args:
            keys: The keys of these files.
        """
        kept = []
        for shard in self.shards():
            is_own = shard.path.parent.parent == self.folder
            has_indices = len(shard.keys) > 0  # not headers alone
            if is_own and has_indices and np.isin(shard.keys, keys).all():
                with suppress(OSError):  # another process removes it, too
                    shard.path.unlink()
            else:
                kept.append(shard)
        self._shards = kept

    def _save(
        self, key: int, columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
    ) -> None:
        """Write the file of one source. A failure is logged once."""
        if not self._is_writable:
            return
        try:
            save_tensors(_path_of(self.folder, key), columns, metadata)
        except OSError as error:
            self._is_writable = False
            logger.warning("indices cannot be saved, so that videos are indexed again: %s", error)

    def saved_headers(self) -> SavedHeaders:
        """Return what earlier runs, and `telecine data index`, have read of headers."""
        paths = [shard.path for shard in self.shards()]
        paths += [folder / _HEADERS for folder in self._folders]
        all_keys = [np.empty(0, np.int64)]
        all_headers = [np.empty(0, HEADER)]
        for path in paths:
            try:
                file = IndexFile(path)
                keys = file.column("key")
                headers = np.zeros(len(keys), HEADER)
                for name in HEADER.names or ():
                    headers[name] = file.column(name)
            except DAMAGE_ERRORS:
                continue
            all_keys.append(keys)
            all_headers.append(headers)
        keys, places = np.unique(np.concatenate(all_keys), return_index=True)
        return SavedHeaders(keys, np.concatenate(all_headers)[places])

    def save_headers(self, keys: NDArray[np.int64], headers: NDArray[Any]) -> None:
        """Replace the headers that are kept. A failure is logged.

        Args:
            keys: The key of each file.
            headers: The header of each file, of type `HEADER`.
        """
        try:
            _remove_left(self.folder)
            save_tensors(self.folder / _HEADERS, _header_columns(keys, headers), {})
        except OSError as error:
            text = "headers cannot be saved, so that the next run reads them again: %s"
            logger.warning(text, error)

    def saved_addresses(self) -> SavedAddresses:
        """Return what earlier runs have asked servers about single files."""
        for folder in self._folders:
            with suppress(*DAMAGE_ERRORS):
                file = IndexFile(folder / _ADDRESSES)
                versions = StringColumn(file.column("version.content"), file.column("version.end"))
                return SavedAddresses(file.column("key"), file.column("size"), versions)
        return SavedAddresses.of([])

    def save_addresses(self, addresses: SavedAddresses) -> None:
        """Replace the sizes and versions that are kept. A failure is logged."""
        columns: dict[str, NDArray[Any]] = {
            "key": addresses.keys,
            "size": addresses.sizes,
            "version.content": addresses.versions.content,
            "version.end": addresses.versions.ends,
        }
        try:
            save_tensors(self.folder / _ADDRESSES, columns, {})
        except OSError as error:
            text = "sizes of files cannot be saved, so that the next run asks servers again: %s"
            logger.warning(text, error)

    def forget_addresses(self) -> None:
        """Remove the sizes and versions that are kept, so that the next run asks servers again."""
        for store in (self, *self.others):
            for folder in store._folders:
                with suppress(OSError):  # there are none, or another process removes them
                    (folder / _ADDRESSES).unlink()


def _is_lasting(sidecar: Sidecar) -> bool:
    """Return whether a sidecar holds for other runs, too."""
    return sidecar.is_complete and not has_arrays(sidecar)


def _key_of_address(url: str) -> int:
    digest = hashlib.blake2b(url.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _path_of(folder: Path, key: int) -> Path:
    name = f"{key:016x}"
    return folder / name[-2:] / name


def _remove_left(folder: Path) -> None:
    """Remove what processes that were killed have left."""
    with suppress(OSError):  # another process removes it, too
        remove_partial(folder, time.time() - _SECONDS_OF_A_WRITE)


def _header_columns(keys: NDArray[np.int64], headers: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return headers as columns, sorted by the keys of their files."""
    order = np.argsort(keys)
    columns: dict[str, NDArray[Any]] = {"key": keys[order]}
    for name in HEADER.names or ():
        columns[name] = headers[name][order]
    return columns
