"""Index the files of a data set, each process a part of them, into sidecars of tar files and shards of other files."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from telecine.base.checks import count
from telecine.base.terminal import with_progress
from telecine.data import DataError, DecodeError, VideoInfo, index_video
from telecine.data.errors import Deadline, thread_errors
from telecine.data.find import find_files, is_archive, segments_of
from telecine.data.fingerprint import Fingerprint
from telecine.data.lazy.header import Header, read_header
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lazy.shards import ShardWriter
from telecine.data.lazy.sidecar import (
    Sidecar,
    has_arrays,
    read_infos,
    read_sidecar,
    scan_archive,
    write_sidecar,
)
from telecine.data.lazy.sorted_numbers import find_row
from telecine.data.remote import look_up
from telecine.data.source import File, RemotePath, Skipped, Source, TarMember, file_of, kind_of
from telecine.settings import MAX_FAILURES, ClipConfig

# Files of which all others are read if one is not read in time.
_FILES_AT_ONCE = 1000


@dataclass(frozen=True)
class Indexed:
    """What one process has done of its part."""

    num_indexed: int
    """Files that it has indexed now."""
    num_before: int
    """Files, and tar files, that an earlier call has read: they are not read again, even if they cannot be indexed."""
    skipped: list[Skipped]
    """Files that cannot be indexed, and tar files with arrays."""

    def print_to(self, console: Console) -> None:
        """Print it in a line or two."""
        text = f"indexed {count(self.num_indexed, 'file')}; {self.num_before} were read before"
        console.print(text, soft_wrap=True)
        if self.skipped:
            console.print(f"skipped: {Skipped.listed(self.skipped)}", soft_wrap=True)


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
    for begin in range(0, len(files), _FILES_AT_ONCE):
        indexer.index_files(files[begin : begin + _FILES_AT_ONCE])
    return Indexed(indexer.num_indexed, indexer.num_before, indexer.skipped)


@dataclass(frozen=True)
class _Outcome:
    """What was read of a file."""

    source: Source
    header: Header | None
    """None for a member of a tar file: the sidecar has it."""
    info: VideoInfo | None
    error: DataError | None
    """Why it has no header, or no exact index: a `DecodeError`, or another error if it is not read in time."""


class _Indexer:
    """Indexes files in threads, and counts them."""

    def __init__(self, path: str, config: ClipConfig) -> None:
        self.num_indexed = 0
        self.num_before = 0
        self.skipped: list[Skipped] = []
        self._config = config
        self._saved_index = SavedIndex(path, config)
        self._writer = ShardWriter(self._saved_index.shards, is_required=True)
        self._exact_keys = self._saved_index.shards.exact_keys()
        self._header_keys = self._saved_index.shards.headers().keys

    def index_archive(self, archive: File) -> None:
        """Write the sidecar of a tar file, unless it has one that fits."""
        sidecar = read_sidecar(archive)
        if sidecar is not None and sidecar.has_all_indices:
            self.num_before += 1
            return
        if sidecar is None:
            sidecar = scan_archive(archive, self._config)
        if has_arrays(sidecar):
            reason = "has arrays, whose axes are settings of a run"
            self.skipped.append(Skipped(archive, reason))
            return
        if not sidecar.was_read_whole:
            reason = "is read up to an error of the system; index it again"
            self.skipped.append(Skipped(archive, reason))
            return
        infos = read_infos(archive)
        fingerprint = Fingerprint.of(archive)
        missing = []
        for member in _members_of(sidecar):
            if member.offset in infos:
                continue
            key = self._saved_index.key_of(member, fingerprint)
            info = self._saved_index.saved_info(key, member)  # of a run
            if info is None:
                missing.append(member)
            else:
                infos[member.offset] = info
        has_all_indices = False
        try:
            for outcome in self._read(missing, f"indexing {archive.name}"):
                if outcome.info is not None:
                    assert isinstance(outcome.source, TarMember)
                    infos[outcome.source.offset] = outcome.info
            has_all_indices = True
        finally:  # also what was indexed beside a member that is not read in time
            write_sidecar(archive, sidecar._replace(has_all_indices=has_all_indices), infos)
        self.skipped.extend(sidecar.skipped)

    def index_files(self, sources: Sequence[Source]) -> None:
        """Write shards with the indices of files that were not read yet."""
        keys: dict[Source, int] = {}
        named = [source for source in sources if kind_of(source) != "arrays"]
        for source, key in self._look_up(named).items():
            if self._was_read(key):
                self.num_before += 1
            else:
                keys[source] = key
        try:
            for outcome in self._read(list(keys), "indexing files"):
                key = keys[outcome.source]
                is_in_shard = find_row(self._exact_keys, key) is not None
                self._writer.add(key, outcome.header, None if is_in_shard else outcome.info)
                if isinstance(outcome.error, DecodeError):
                    self._saved_index.save_failure(key, outcome.source, outcome.error)
        finally:  # also what was indexed beside a file that is not read in time
            self._writer.write()

    def _look_up(self, sources: Sequence[Source]) -> dict[Source, int]:
        """Return the keys of the files that exist, with sizes and versions of those at addresses; note the others.

        Raises:
            DataError: a server does not answer in time.
        """

        def key_or_skip(source: Source) -> tuple[Source, int] | Skipped:
            try:
                if isinstance(source, RemotePath):
                    deadline = Deadline(source, self._config.timeout)
                    source = look_up(source, deadline, from_listing=True)
                return source, self._saved_index.key_of(source, Fingerprint.of(file_of(source)))
            except OSError as error:
                return Skipped(source, error.strerror or str(error))

        keys: dict[Source, int] = {}
        with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
            answers = pool.map(key_or_skip, sources)
            for answer in with_progress(answers, "looking up files", total=len(sources)):
                if isinstance(answer, Skipped):
                    self.skipped.append(answer)
                else:
                    source, key = answer
                    keys[source] = key
        return keys

    def _was_read(self, key: int) -> bool:
        """Return whether shards have header and exact index of the file with a key, or it is known why it has none."""
        if self._saved_index.failure(key) is not None:
            return True
        has_index = find_row(self._exact_keys, key) is not None
        return has_index and find_row(self._header_keys, key) is not None

    def _read(self, sources: Sequence[Source], description: str) -> Iterator[_Outcome]:
        """Yield the header and the exact index of files, in order, and count them. Leave out files not read in time.

        Raises:
            DataError: After all files, if one was not read in time; or at once after several of them.
        """
        late = []
        with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = pool.map(self._read_one, sources)
            for outcome in with_progress(outcomes, description, total=len(sources)):
                error = outcome.error
                if error is None:
                    self.num_indexed += 1
                elif isinstance(error, DecodeError):
                    self.skipped.append(Skipped.of(outcome.source, error))
                else:
                    late.append(error)
                    if len(late) == MAX_FAILURES:
                        pool.shutdown(wait=False, cancel_futures=True)
                        break
                    continue
                yield outcome
        if late:
            raise late[0]

    def _read_one(self, source: Source) -> _Outcome:
        header = None
        info = None
        try:
            if not isinstance(source, TarMember):
                header = read_header(source, self._config)
                key = self._saved_index.key_of(source, Fingerprint.of(source))
                info = self._saved_index.saved_info(key, source)  # of a run
            if info is None:
                info = index_video(source, self._config)
        except DataError as error:
            return _Outcome(source, header, None, error)
        return _Outcome(source, header, info, None)


def _members_of(sidecar: Sidecar) -> Iterator[TarMember]:
    for member in sidecar.members:
        assert isinstance(member, TarMember)
        yield member
