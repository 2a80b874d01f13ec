"""The index of `clips.index: ahead`: all exact indices of a data set in memory, from the files of earlier runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from os import PathLike

from telecine.data.errors import Deadline
from telecine.data.fingerprint import look_up_source
from telecine.data.index import index_video
from telecine.data.index_paths import single_index
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lazy.shards import ShardWriter
from telecine.data.lazy.sidecar import read_infos
from telecine.data.source import File, Source, TarMember, VideoInfo, check_frame
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)


class AheadIndex:
    """Indexes the videos of a folder, list, tar file or pattern, and reuses the results for unchanged files.

    They are saved as those of `SavedIndex`, in shards; those of the same data that `telecine data index` or a run with
    `clips.index: lazy` has made are used. Several threads and processes may index.

    Args:
        data: A path, a pattern or an address, as `telecine.data.load_spans`.
        config: The limits of `index_video`.
    """

    def __init__(self, data: str | PathLike[str], config: ClipConfig | None = None) -> None:
        self.config = config or ClipConfig()
        _remove_single_index(data)
        self._saved_index = SavedIndex(str(data), self.config)
        self._infos = self._saved_index.shards.infos()
        self._infos_of_archives: dict[File, dict[int, VideoInfo]] = {}
        self._lock = threading.Lock()  # held while a sidecar is read
        self._writer = ShardWriter(self._saved_index.shards, is_required=False)

    def members(self, archives: Sequence[File]) -> dict[File, list[TarMember]]:
        """Return the videos, images and arrays of tar files in order, also those whose header cannot be read.

        Raises:
            DataError: a tar file is not read in time.
        """
        members_of: dict[File, list[TarMember]] = {archive: [] for archive in archives}
        if archives:
            table, skipped = self._saved_index.members(archives)
            for member in (*table, *(skip.path for skip in skipped)):
                assert isinstance(member, TarMember)
                members_of[member.archive].append(member)
        for members in members_of.values():
            members.sort(key=lambda member: member.offset)
        return members_of

    def info(self, source: Source) -> VideoInfo:
        """Return the index of a video, an image or an array, see `index_video`. That of an array is not kept.

        Raises:
            DecodeError: see `index_video`.
            DataError: see `index_video`.
        """
        deadline = Deadline(source, self.config.timeout)
        looked_up = look_up_source(source, deadline)
        if looked_up is None:
            return index_video(source, self.config, deadline)
        source, fingerprint = looked_up
        key = self._saved_index.key_of(source, fingerprint)
        info = self._infos.get(key)
        if info is None and isinstance(source, TarMember):
            info = self._infos_of_members(source.archive).get(source.offset)
        if info is None:
            info = self._saved_index.saved_info(key, source)
        if info is None:
            info = index_video(source, self.config, deadline)
            self._writer.add(key, None, info)
        check_frame(source, info.width, info.height, self.config)
        return replace(info, source=source)

    def _infos_of_members(self, archive: File) -> dict[int, VideoInfo]:
        """Return the exact indices in the sidecar of a tar file, by the offsets of members."""
        with self._lock:
            if archive not in self._infos_of_archives:
                self._infos_of_archives[archive] = read_infos(archive)
            return self._infos_of_archives[archive]

    def save(self) -> None:
        """Save the new indices; `info` does it now and then. A failure is logged."""
        self._writer.write()


def _remove_single_index(data: str | PathLike[str]) -> None:
    """Remove the index in one file that earlier versions of telecine have kept of a data set, and say so."""
    path = single_index(data)
    if path.exists():
        logger.warning(
            "%s is of an earlier version of telecine, and removed; indexing the data again", path
        )
        with suppress(OSError):  # another process removes it, too
            path.unlink()
