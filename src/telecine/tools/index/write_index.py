"""Index the files of a data set, each process a part of them, into sidecars of tar files and shards of other files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from rich.console import Console

from telecine.base.checks import count
from telecine.base.terminal import with_progress
from telecine.data import DataError, DecodeError, VideoInfo, index_video
from telecine.data.errors import thread_errors
from telecine.data.find import find_files, is_archive, segments_of
from telecine.data.fingerprint import Fingerprint
from telecine.data.lazy.header import HEADER, Header, read_header
from telecine.data.lazy.index import LazyIndex
from telecine.data.lazy.sidecar import (
    Sidecar,
    has_arrays,
    read_sidecar,
    scan_archive,
    write_sidecar,
)
from telecine.data.lazy.sorted_numbers import find_row
from telecine.data.source import File, Skipped, Source, TarMember, file_of, kind_of
from telecine.settings import MAX_FAILURES, ClipConfig

# A process that is killed loses the indices of fewer files, and of fewer timestamps.
_FILES_PER_SHARD = 1000
_TIMESTAMPS_PER_SHARD = 2**22

_Result: TypeAlias = tuple[Header | Skipped, VideoInfo | Skipped | None]


@dataclass(frozen=True)
class Indexed:
    """What one process has done of its part."""

    num_indexed: int
    """Files that it has indexed now."""
    num_known: int
    """Files, and tar files, that were indexed before."""
    skipped: list[Skipped]
    """Files that cannot be indexed, and tar files with arrays."""

    def print_to(self, console: Console) -> None:
        """Print it in a line or two."""
        text = f"indexed {count(self.num_indexed, 'file')}; {self.num_known} were indexed before"
        console.print(text, soft_wrap=True)
        if self.skipped:
            console.print(f"skipped: {Skipped.listed(self.skipped)}", soft_wrap=True)


def part_of_process() -> tuple[int, int]:
    """Return the number of this process and that of all processes, as torchrun sets them; 0 and 1 without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def write_index(path: str, config: ClipConfig, part: int = 0, num_parts: int = 1) -> Indexed:
    """Index a part of a data set. The same call again indexes what is missing.

    Args:
        path: The data, as `TrainConfig.data`.
        config: The limits of files.
        part: The number of the part.
        num_parts: The number of all parts.

    Raises:
        DataError: nothing is found at `path`, or a file is not read in time.
        OSError: an index cannot be written.
    """
    indexer = _Indexer(path, config)
    archives: list[File] = []
    sources: dict[Source, None] = {}
    for file in find_files(path, name="path"):
        if is_archive(file):
            archives.append(file)
        else:
            for segment in segments_of(file, config):
                sources[segment.source] = None
    for archive in archives[part::num_parts]:
        indexer.index_archive(archive)
    files = list(sources)[part::num_parts]
    for begin in range(0, len(files), _FILES_PER_SHARD):
        indexer.index_files(files[begin : begin + _FILES_PER_SHARD])
    return Indexed(indexer.num_indexed, indexer.num_known, indexer.skipped)


class _Indexer:
    """Indexes files in threads, and counts them."""

    def __init__(self, path: str, config: ClipConfig) -> None:
        self.num_indexed = 0
        self.num_known = 0
        self.skipped: list[Skipped] = []
        self._config = config
        self._lazy_index = LazyIndex(path, config)
        self._known_keys = self._lazy_index.shards.header_keys()

    def index_archive(self, archive: File) -> None:
        """Write the sidecar of a tar file, unless it has one that fits."""
        sidecar = read_sidecar(archive)
        if sidecar is not None and sidecar.has_indices:
            self.num_known += 1
            return
        if sidecar is None:
            sidecar = scan_archive(archive, self._config)
        if has_arrays(sidecar):
            reason = "has arrays, whose axes are settings of a run"
            self.skipped.append(Skipped(archive, reason))
            return
        if not sidecar.is_complete:
            reason = "is read up to an error of the system; index it again"
            self.skipped.append(Skipped(archive, reason))
            return
        archive_key = self._lazy_index.key_of(archive, Fingerprint.of(archive))
        infos, missing = self._kept_members(archive_key, sidecar)
        new_infos: dict[int, VideoInfo] = {}
        indexed = self._index(missing, f"indexing {archive.name}")
        try:
            for member, result in zip(missing, indexed, strict=True):
                if result is not None and isinstance(result[1], VideoInfo):
                    new_infos[member.offset] = result[1]
        except DataError:
            self._keep_members(archive_key, sidecar, new_infos)
            write_sidecar(archive, sidecar)
            raise
        self.skipped.extend(sidecar.skipped)
        write_sidecar(archive, sidecar, infos | new_infos)
        if infos:
            self._lazy_index.shards.remove(sidecar.members.member_keys([archive_key]))

    def _kept_members(
        self, archive_key: int, sidecar: Sidecar
    ) -> tuple[dict[int, VideoInfo], list[TarMember]]:
        """Return the indices of members that earlier attempts have kept, by their offsets, and the other members.

        Args:
            archive_key: The key of the tar file.
            sidecar: Its members.
        """
        infos = {}
        missing = []
        for row, key in enumerate(sidecar.members.member_keys([archive_key]).tolist()):
            member = sidecar.members[row]
            assert isinstance(member, TarMember)
            info = self._lazy_index.saved_info(key, member) if self._is_known(key) else None
            if info is None:
                missing.append(member)
            else:
                infos[member.offset] = info
        return infos, missing

    def _keep_members(
        self, archive_key: int, sidecar: Sidecar, infos: Mapping[int, VideoInfo]
    ) -> None:
        """Write the indices of some members of a tar file into a shard, as those of files, for the next attempt.

        Args:
            archive_key: The key of the tar file.
            sidecar: Its members.
            infos: The indices, by the offsets of members.
        """
        keys = []
        headers = []
        infos_by_key = {}
        offsets = sidecar.members.locations["offset"].tolist()
        all_keys = sidecar.members.member_keys([archive_key]).tolist()
        for row, (offset, key) in enumerate(zip(offsets, all_keys, strict=True)):
            if offset in infos:
                keys.append(key)
                headers.append(sidecar.members.headers[row].item())
                infos_by_key[key] = infos[offset]
        if keys:
            self._lazy_index.shards.write(
                np.array(keys, np.int64), np.array(headers, HEADER), infos_by_key
            )

    def index_files(self, sources: Sequence[Source]) -> None:
        """Write a shard with the indices of files that have none yet."""
        missing = []
        keys = []
        for source in sources:
            if kind_of(source) == "arrays":
                continue
            try:
                key = self._lazy_index.key_of(source, Fingerprint.of(file_of(source)))
            except OSError as error:
                self.skipped.append(Skipped(source, error.strerror or str(error)))
                continue
            if self._is_known(key):
                self.num_known += 1
                continue
            missing.append(source)
            keys.append(key)
        shard: dict[int, _Result] = {}
        num_timestamps = 0
        try:
            for key, result in zip(keys, self._index(missing, "indexing files"), strict=True):
                if result is None:
                    continue
                shard[key] = result
                _, info = result
                if isinstance(info, VideoInfo):
                    num_timestamps += info.num_frames
                if num_timestamps >= _TIMESTAMPS_PER_SHARD:
                    self._write_shard(shard)
                    shard.clear()
                    num_timestamps = 0
        finally:  # also what was indexed beside a file that is not read in time
            self._write_shard(shard)

    def _is_known(self, key: int) -> bool:
        """Return whether a shard has the file with a key."""
        return find_row(self._known_keys, key) is not None

    def _write_shard(self, results: Mapping[int, _Result]) -> None:
        """Write what was found of files, by their keys; nothing if no header was read."""
        keys = []
        headers = []
        infos = {}
        for key, (header, info) in results.items():
            if isinstance(header, Skipped):
                continue
            keys.append(key)
            headers.append(tuple(header))
            if isinstance(info, VideoInfo):
                infos[key] = info
        if keys:
            self._lazy_index.shards.write(
                np.array(keys, np.int64), np.array(headers, HEADER), infos
            )

    def _index(self, sources: Sequence[Source], description: str) -> Iterator[_Result | None]:
        """Yield the header and the exact index of each file, or why it has none; None for one that is not read in time.

        Raises:
            DataError: After all files, if one was not read in time; or at once after several of them.
        """
        late = []
        with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
            indexed = pool.map(self._index_one, sources)
            for result in with_progress(indexed, description, total=len(sources)):
                if isinstance(result, DataError):
                    late.append(result)
                    if len(late) == MAX_FAILURES:
                        pool.shutdown(wait=False, cancel_futures=True)
                        break
                    yield None
                    continue
                header, info = result
                if isinstance(info, VideoInfo):
                    self.num_indexed += 1
                elif isinstance(header, Skipped):
                    self.skipped.append(header)
                elif info is not None:
                    self.skipped.append(info)
                yield header, info
        if late:
            raise late[0]

    def _index_one(self, source: Source) -> _Result | DataError:
        """Return the header and the exact index of a file, or why it has none; or that it is not read in time."""
        try:
            header = read_header(source, self._config)
        except DecodeError as error:
            return Skipped.of(source, error), None
        except DataError as error:
            return error
        try:
            return header, index_video(source, self._config)
        except DecodeError as error:
            return header, Skipped.of(source, error)
        except DataError as error:
            return error
