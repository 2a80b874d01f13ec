"""The index of `clips.index: lazy`: exact indices, made when a video is first drawn, and shared with later runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
from numpy.typing import NDArray

from telecine.data.errors import DecodeError, is_of_system
from telecine.data.fingerprint import Fingerprint, look_up_source
from telecine.data.index import index_video
from telecine.data.index_keys import index_root, key_of
from telecine.data.index_paths import lazy_folders
from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.index_file import DAMAGE_ERRORS, IndexFile, columns_of_infos, save_tensors
from telecine.data.lazy.members import find_members
from telecine.data.lazy.recent import Recent
from telecine.data.lazy.saved_addresses import SavedAddresses
from telecine.data.lazy.saved_headers import SavedHeaders
from telecine.data.lazy.shards import Shards
from telecine.data.lazy.sidecar import open_sidecar
from telecine.data.source import (
    File,
    Skipped,
    Source,
    TarMember,
    VideoInfo,
    check_frame,
)
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_HEADERS = "headers"
_ADDRESSES = "addresses"
_SHARDS = "shards"
_MEMBERS = "members"
_FAILURE = "failure"
_LIMITS = "limits"
_NUM_RECENT = 256  # indices that a process keeps
_NUM_OPEN = 64  # sidecars and shards that a process keeps open


class LazyIndex:
    """The indices of a data set in a folder beside it, or in the user's cache folder. Any process may add to it.

    If the data cannot be written to, the folder is in the cache, and one beside the data is read, too. A table in
    `telecine.data.lazy` says what is in it. A file is found by a key: a hash of its path relative to the data, its size
    and its time of change or version.

    Args:
        data: A path, a pattern or an address, as `telecine.data.load_spans`.
        config: The limits of `index_video`.
        others: Other paths. What is saved of them is read where the first path has nothing.
    """

    def __init__(self, data: str, config: ClipConfig, others: Sequence[str] = ()) -> None:
        self._folders = lazy_folders(data)
        self.folder = self._folders[0]
        self.config = config
        self.others = [LazyIndex(other, config) for other in others]
        self._root = index_root(data)
        self.shards = Shards([folder / _SHARDS for folder in self._folders])
        """What `telecine data index` has written."""
        self._recent: Recent[int, VideoInfo] = Recent(_NUM_RECENT)
        self._failures: dict[int, str] = {}  # why files have no index
        self._without_indices: set[File] = set()  # tar files whose sidecars have none
        # Shards by their paths, and sidecars by those of their tar files.
        self._open: Recent[File, IndexFile] = Recent(_NUM_OPEN)
        self._is_writable = True

    def key_of(self, source: Source, fingerprint: Fingerprint) -> int:
        """Return the key of a source in this data set, see `telecine.data.index_keys.key_of`."""
        return key_of(source, fingerprint, self._root)

    def members(self, archives: Sequence[File]) -> tuple[FileTable, list[Skipped]]:
        """Return the members of tar files, see `find_members`.

        Raises:
            DataError: a tar file is not read in time.
        """
        folders = [folder / _MEMBERS for folder in self._folders]
        return find_members(archives, folders, self.config)

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
        self._recent.put(key, info)
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
        for path in self.shards.with_key(key):
            with suppress(*DAMAGE_ERRORS):
                shard = self._open.get(path)
                if shard is None:
                    shard = IndexFile(path)
                    self._open.put(path, shard)
                info = shard.info(key, source)
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
        sidecar = self._open.get(member.archive)
        if sidecar is None:
            sidecar = open_sidecar(member.archive)
            if sidecar is None or len(sidecar.keys) == 0:
                self._without_indices.add(member.archive)
                return None
            self._open.put(member.archive, sidecar)
        try:
            return sidecar.info(member.offset, member)
        except DAMAGE_ERRORS:
            return None

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
        paths = [shard.path for shard in self.shards.all()]
        paths += [folder / _HEADERS for folder in self._folders]
        return SavedHeaders.read(paths)

    def save_headers(self, headers: SavedHeaders) -> None:
        """Replace the headers that are kept. A failure is logged."""
        try:
            headers.write(self.folder / _HEADERS)
        except OSError as error:
            text = "headers cannot be saved, so that the next run reads them again: %s"
            logger.warning(text, error)

    def saved_addresses(self) -> SavedAddresses:
        """Return what earlier runs have asked servers about single files."""
        for folder in self._folders:
            with suppress(*DAMAGE_ERRORS):
                return SavedAddresses.read(folder / _ADDRESSES)
        return SavedAddresses.of([])

    def save_addresses(self, addresses: SavedAddresses) -> None:
        """Replace the sizes and versions that are kept. A failure is logged."""
        try:
            addresses.write(self.folder / _ADDRESSES)
        except OSError as error:
            text = "sizes of files cannot be saved, so that the next run asks servers again: %s"
            logger.warning(text, error)

    def forget_addresses(self) -> None:
        """Remove the sizes and versions that are kept, so that the next run asks servers again."""
        for lazy_index in (self, *self.others):
            for folder in lazy_index._folders:
                with suppress(OSError):  # there are none, or another process removes them
                    (folder / _ADDRESSES).unlink()


def _path_of(folder: Path, key: int) -> Path:
    name = f"{key:016x}"
    return folder / name[-2:] / name
