"""Read files at addresses: whole, or the parts of them that are read, through the cache."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

from telecine.data.errors import ChangedError, DataError, Deadline, DecodeError
from telecine.data.remote import RefusedError, info_of, look_up, time_limit, with_retries
from telecine.data.remote_cache import SIZE_VARIABLE, RemoteCache, cache_folder, max_cache_bytes
from telecine.data.source import (
    LocalSource,
    RemotePath,
    Source,
    TarMember,
    extent,
    file_of,
    kind_of,
    open_file,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

T = TypeVar("T")
Reads: TypeAlias = Literal["whole", "parts", "headers"]  # see `open_local`

# How often another process may remove a copy between its arrival and its opening.
_MAX_REMOVALS = 10
# Bytes of a block of a file. A second of 720p takes about one; smaller ones would take as long to request.
BLOCK_BYTES = 2**20
# Bytes of a part that one request asks for; it is in memory until it is written.
_MAX_REQUEST = 2**23
# Servers that did not send the part that was requested.
_SERVERS_OF_WHOLE_FILES: set[str] = set()


def open_local(
    source: Source,
    open_source: Callable[[Any], T],
    deadline: Deadline | None = None,
    *,
    reads: Reads = "parts",
) -> T:
    """Open a source on this machine, or one at an address, of which the parts that are read are fetched.

    Args:
        source: The source.
        open_source: The function that opens it, such as one of a library that needs its path; for others there is
            `open_bytes`. It gets the source. Of one at an address it gets what `reads` says. It is called again if
            another process removes a copy before it is opened.
        deadline: The time by which what is read of a file at an address must arrive.
        reads: How a source at an address is read.
            "whole": most of it is read, or its path is needed. It is fetched at once, and `open_source` gets a copy,
            which may be removed as soon as the function has returned.
            "parts": at some positions. `open_source` gets an open binary file, whose blocks are kept in the cache.
            "headers": small parts in order and once, such as the headers of a tar file. They are not kept.
            Of a small file, and from servers that send no parts, it gets a copy in all cases.

    Returns:
        What `open_source` returns.

    Raises:
        DecodeError: a file at an address does not exist.
        DataError: it cannot be fetched, or not by the deadline.
    """
    file = file_of(source)
    if isinstance(file, Path):
        return open_source(source)
    try:
        file = look_up(file, deadline)
    except FileNotFoundError as error:
        raise DecodeError(f"{file}: No such file") from error
    if file.is_folder:
        raise DecodeError(f"{file}: a folder")
    if file.size is None:
        raise DecodeError(f"{file}: its server does not tell its size")
    reader = _RemoteReader(file, deadline)

    def open_again() -> T:
        return open_source(_local_source(source, reader, reads))

    return _until_not_removed(file, open_again)


class SourceBytes(NamedTuple):
    """The opened file that holds a source, and which of its bytes are those of the source."""

    file: BinaryIO
    begin: int
    size: int


@contextmanager
def open_bytes(
    source: Source, deadline: Deadline | None = None, *, reads: Reads = "parts"
) -> Iterator[SourceBytes]:
    """Open the bytes of a source, on this machine or at an address, at the first one.

    They stay readable if another process removes a copy.

    Args:
        source: The source.
        deadline: As that of `open_local`.
        reads: As that of `open_local`.

    Raises:
        DecodeError: as `open_local`, or the source is no regular file.
        DataError: as `open_local`.
        OSError: it cannot be opened.
    """

    def open_source(local: LocalSource) -> SourceBytes:
        file = open_file(local)
        begin, size = extent(local, file)
        file.seek(begin)
        return SourceBytes(file, begin, size)

    opened = open_local(source, open_source, deadline, reads=reads)
    with opened.file:
        yield opened


def _local_source(source: Source, reader: _RemoteReader, reads: Reads) -> LocalSource:
    """Return a copy of a source at an address, or an open file of its bytes, see `open_local`."""
    part = range(reader.size)
    if isinstance(source, TarMember):
        # A damaged tar file may be shorter.
        part = part[source.offset : source.offset + source.size]
    at_once = reads == "whole" or len(part) <= BLOCK_BYTES
    is_whole_file = at_once and len(part) == reader.size
    sends_parts = reader.server not in _SERVERS_OF_WHOLE_FILES
    if sends_parts and not is_whole_file and not reader.is_copied:
        try:
            if at_once:
                return reader.copy(part, _suffix(source))
            return reader.open(part, keeps_blocks=reads == "parts")
        except _NoPartsError as error:
            logger.warning("%s. They are fetched whole.", error)
            _SERVERS_OF_WHOLE_FILES.add(reader.server)
    copy = reader.copy(range(reader.size), _suffix(reader.file))
    return replace(source, archive=copy) if isinstance(source, TarMember) else copy


def _suffix(source: Source) -> str:
    return PurePosixPath(source.name).suffix.lower() if kind_of(source) else ""


def _until_not_removed(file: RemotePath, call: Callable[[], T]) -> T:
    """Call a function again if another process has removed the copy that it opens."""
    for _ in range(_MAX_REMOVALS):
        with suppress(FileNotFoundError):
            return call()
    remedy = f"The processes that read need more room: set {SIZE_VARIABLE} higher."
    raise DataError(
        f"{file}: was removed from the cache {_MAX_REMOVALS} times before it was opened. {remedy}"
    )


class _NoPartsError(DataError):
    """A server sent another part of a file than the one that was requested."""


class _RemoteReader:
    """Fetches parts of a file whose size and version are known. Parts are kept in the cache.

    Args:
        file: The file.
        deadline: The time by which its parts must arrive.
    """

    def __init__(self, file: RemotePath, deadline: Deadline | None) -> None:
        self.file = file
        self.size = file.size or 0
        self.server = urlsplit(file.url).netloc
        self._deadline = deadline
        self._cache = RemoteCache(cache_folder(), max_cache_bytes())

    @property
    def is_copied(self) -> bool:
        """Whether the cache has a copy of the whole file."""
        return self._cache.has(self._name(range(self.size), _suffix(self.file)))

    def copy(self, part: range, suffix: str) -> Path:
        """Return the copy of a part; fetch it unless it is in the cache.

        Args:
            part: The positions of its bytes.
            suffix: Suffix of the copy, such as ".mp4"; empty for files that are neither videos, images nor arrays.

        Raises:
            DataError: it cannot be fetched, or is larger than the cache.
        """
        if len(part) > self._cache.max_bytes:
            remedy = f"Set {SIZE_VARIABLE} higher, or split the file."
            got = f"{len(part)} bytes, more than the {self._cache.max_bytes} bytes of the cache"
            raise DataError(f"{self.file}: {got}. {remedy}")
        fetch = self._fetch_whole
        if len(part) < self.size:
            fetch = partial(self._fetch_part, part)
        return self._cache.copy(self._name(part, suffix), len(part), fetch)

    def open(self, part: range, *, keeps_blocks: bool) -> BinaryIO:
        """Open a part as a binary file.

        Args:
            part: The positions of its bytes.
            keeps_blocks: Whether its blocks are kept in the cache. Otherwise small parts are read in order and once.
        """
        from telecine.data import remote_file  # imports fsspec

        def read_block(start: int, stop: int) -> bytes:
            block = part[start:stop]
            return _until_not_removed(self.file, lambda: self.copy(block, "").read_bytes())

        def read_part(start: int, stop: int) -> bytes:
            return self._read(part[start:stop])

        name = self._name(part, "")  # a title that says nothing: FFmpeg takes names for addresses
        if keeps_blocks:
            opened = remote_file.open_blocks(len(part), BLOCK_BYTES, read_block, name)
        else:
            opened = remote_file.open_windows(len(part), read_part, name)
        opened.read(1)  # to notice a server that sends whole files
        opened.seek(0)
        return opened

    def _name(self, part: range, suffix: str) -> str:
        """Return the name of a part in the cache: a hash, so that no address leads out of the folder."""
        identity = f"{self.file.url}\n{self.size}\n{self.file.version}"
        if len(part) < self.size:
            identity += f"\n{part.start}\n{part.stop}"
        return f"{hashlib.sha256(os.fsencode(identity)).hexdigest()}{suffix}"

    def _fetch_whole(self, path: Path) -> None:
        def fetch(fs: AbstractFileSystem) -> None:
            download(self.file, path, fs, self._deadline)

        try:
            with_retries(self.file.url, fetch, self._deadline)
        except FileNotFoundError as error:
            raise changed_error(self.file) from error

    def _fetch_part(self, part: range, path: Path) -> None:
        with open(path, "wb") as output:
            for start in range(0, len(part), _MAX_REQUEST):
                output.write(self._read(part[start : start + _MAX_REQUEST]))

    def _read(self, part: range) -> bytes:
        def read(fs: AbstractFileSystem) -> bytes:
            return read_part(self.file, part, fs, self._deadline)

        try:
            return with_retries(self.file.url, read, self._deadline)
        except FileNotFoundError as error:
            raise changed_error(self.file) from error
        except RefusedError as error:  # a file that is shorter now has no such part
            now = look_up(RemotePath(self.file.url), self._deadline)
            if (now.size, now.version) != (self.file.size, self.file.version):
                raise changed_error(self.file) from error
            raise


def read_part(
    file: RemotePath, part: range, fs: AbstractFileSystem, deadline: Deadline | None = None
) -> bytes:
    """Return some bytes of a file.

    Args:
        file: The file, with its size and version.
        part: The positions of the bytes.
        fs: fsspec's file system of its protocol.
        deadline: The time by which they must arrive.

    Raises:
        DataError: the file has another size or version, the server does not send parts of files, or they do not arrive
            by the deadline.
        OSError: the connection ended too early.
    """
    name = fs._strip_protocol(file.url)
    if file.url.startswith("http"):
        content = _read_http_part(name, part, fs, deadline)
    elif file.url.startswith("hf"):
        content = fs.cat_file(name, part.start, part.stop, cache_type="none")  # no more than these
    else:
        content = fs.cat_file(name, start=part.start, end=part.stop)
    if len(content) > len(part):
        raise _NoPartsError(f"{file}: its server sends no parts of files")
    _check_unchanged(file, fs, deadline)  # also where fewer bytes come: the file may be shorter now
    if len(content) < len(part):
        text = f"the connection ended after {len(content)} of {len(part)} bytes"
        raise OSError(errno.EIO, text)
    return content


def _read_http_part(
    url: str, part: range, fs: AbstractFileSystem, deadline: Deadline | None
) -> bytes:
    """Return some bytes of a file on a web server. If it sends more, the connection ends after some more bytes."""
    from fsspec.callbacks import Callback

    content = io.BytesIO()

    class EnoughError(Exception):
        """More bytes than requested have arrived."""

    def check(_size: int | None, value: int, **_: object) -> None:
        if deadline is not None:
            deadline.check()
        if value > len(part):
            raise EnoughError

    headers = {"Range": f"bytes={part.start}-{part.stop - 1}", "Accept-Encoding": "identity"}
    with suppress(EnoughError):
        fs.get_file(
            url,
            content,
            callback=Callback(hooks={"bound": check}),
            headers=headers,
            **time_limit(url, deadline),
        )
    return content.getvalue()


def download(
    file: RemotePath, path: Path, fs: AbstractFileSystem, deadline: Deadline | None = None
) -> None:
    """Write a file to `path`. Never more bytes are written than the file had when it was looked up.

    Args:
        file: The file, with its size and version.
        path: Where to write it.
        fs: fsspec's file system of its protocol.
        deadline: The time by which it must arrive.

    Raises:
        DataError: the file has another size or version, or does not arrive by the deadline.
        OSError: the connection ended too early.
    """
    from fsspec.callbacks import Callback

    expected_size = file.size or 0

    def check(size: int | None, value: int, **_: object) -> None:
        if max(size or 0, value) > expected_size:
            raise changed_error(file)
        if deadline is not None:
            deadline.check()

    callback = Callback(hooks={"bound": check})
    fs.get_file(
        fs._strip_protocol(file.url),
        str(path),
        callback=callback,
        **time_limit(file.url, deadline),
    )
    _check_unchanged(file, fs, deadline)  # also where fewer bytes come: the file may be shorter now
    num_bytes = path.stat().st_size
    if num_bytes != file.size:
        raise OSError(errno.EIO, f"the connection ended after {num_bytes} of {file.size} bytes")


def _check_unchanged(file: RemotePath, fs: AbstractFileSystem, deadline: Deadline | None) -> None:
    now = info_of(file.url, fs, deadline)
    if (now.size, now.version) != (file.size, file.version):
        raise changed_error(file)


def changed_error(file: Source) -> ChangedError:
    """Return the error of a file at an address that is not as its server has said before."""
    return ChangedError(
        f"{file}: was changed or removed after it was listed. Run the same command again."
    )
