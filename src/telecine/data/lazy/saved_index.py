"""The saved index of a data set: headers and exact indices, which all runs share."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import av
import numpy as np

from telecine.data.errors import Deadline, DecodeError, is_of_system, thread_errors
from telecine.data.fingerprint import Fingerprint, look_up_source
from telecine.data.index import index_video
from telecine.data.index_keys import index_root, key_of, keys_of_members
from telecine.data.index_paths import index_folders
from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.index_file import DAMAGE_ERRORS
from telecine.data.lazy.members import find_members
from telecine.data.lazy.recent import Recent
from telecine.data.lazy.saved_addresses import SavedAddresses
from telecine.data.lazy.saved_infos import SavedInfos
from telecine.data.lazy.shards import Shards
from telecine.data.lazy.sidecar import SidecarInfos, read_infos
from telecine.data.source import (
    File,
    Skipped,
    Source,
    VideoInfo,
    check_frame,
)
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_ADDRESSES = "addresses"
_SHARDS = "shards"
_MEMBERS = "members"
_NUM_RECENT = 256  # indices that a process keeps


class SavedIndex:
    """The indices of a data set in a folder beside it, or in the user's cache folder. Any process may add to it.

    If the data cannot be written to, the folder is in the cache, and one beside the data is read, too. A table in
    `telecine.data.lazy` says what is in it. A file is found by a key: a hash of its path relative to the data, its size
    and its time of change or version.

    Args:
        data: A path, a pattern or an address, as `telecine.data.load_spans`.
        config: The limits of `index_video`.
        others: Other paths. A file is looked up beside them if nothing is saved of it beside the first path.
    """

    def __init__(self, data: str, config: ClipConfig, others: Sequence[str] = ()) -> None:
        self.data = data
        self._folders = index_folders(data)
        self.folder = self._folders[0]
        self.config = config
        self.others = [SavedIndex(other, config) for other in others]
        self._root = index_root(data)
        self.shards = Shards([folder / _SHARDS for folder in self._folders])
        """Headers and exact indices of many files each."""
        limits = f"{config.max_pixels} {config.has_colours} {av.__version__}"
        self._saved_infos = SavedInfos(self._folders, limits)
        self._sidecar_infos = SidecarInfos()
        self._recent: Recent[int, VideoInfo] = Recent(_NUM_RECENT)

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
        deadline = Deadline(source, self.config.timeout)
        looked_up = look_up_source(source, deadline)
        if looked_up is None:
            return index_video(source, self.config, deadline)
        source, fingerprint = looked_up
        key = self.key_of(source, fingerprint)
        info = self._recent.get(key) or self.saved_info(key, source)
        for other in self.others:
            if info is None:
                info = other.saved_info(other.key_of(source, fingerprint), source)
        if info is None:
            info = self._index(key, source, deadline)
        check_frame(source, info.width, info.height, self.config)
        self._recent.put(key, info)
        return info

    def _index(self, key: int, source: Source, deadline: Deadline) -> VideoInfo:
        """Index a source, unless that has failed before, and keep the result or the reason.

        Raises:
            DecodeError: see `index_video`.
            DataError: see `index_video`.
        """
        failure = self.failure(key)
        if failure is not None:
            raise DecodeError(f"{source}: {failure}")
        try:
            info = index_video(source, self.config, deadline)
        except DecodeError as error:
            self.save_failure(key, source, error)
            raise
        self._saved_infos.save_info(key, info)
        return info

    def failure(self, key: int) -> str | None:
        """Return why the source with a key has no exact index; None if that is not known."""
        return self._saved_infos.failure(key)

    def save_failure(self, key: int, source: Source, error: DecodeError) -> None:
        """Keep why a source has no exact index, unless another attempt may read it.

        Args:
            key: The key of the source.
            source: The source.
            error: The error of the attempt.
        """
        if not is_of_system(error):
            self._saved_infos.save_failure(key, Skipped.of(source, error).reason)

    def saved_info(self, key: int, source: Source) -> VideoInfo | None:
        """Return the index of a source from the files of this data set; None if they have none, or damaged ones.

        Args:
            key: The key of the source.
            source: The source.
        """
        for store in (self._sidecar_infos, self.shards, self._saved_infos):
            info = store.info(key, source)
            if info is not None:
                return info
        return None

    def all_infos(self, archives: Sequence[File]) -> dict[int, VideoInfo]:
        """Return the exact indices in all shards, and in the sidecars of tar files, by their keys.

        Their sources are not set.

        Args:
            archives: The tar files.
        """
        infos = self.shards.infos()
        with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
            infos_of_archives = list(pool.map(read_infos, archives))
        for archive, by_offset in zip(archives, infos_of_archives, strict=True):
            if not by_offset:
                continue
            archive_keys = np.full(len(by_offset), self.key_of(archive, Fingerprint.of(archive)))
            keys = keys_of_members(archive_keys, np.array(list(by_offset), np.int64))
            infos.update(zip(keys.tolist(), by_offset.values(), strict=True))
        return infos

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
        for index in (self, *self.others):
            for folder in index._folders:
                with suppress(OSError):  # there are none, or another process removes them
                    (folder / _ADDRESSES).unlink()
