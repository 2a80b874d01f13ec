"""Files at `s3://`, `gs://`, `hf://` and `https://`: listed with fsspec, and fetched into a local cache."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from telecine.base.checks import shorten
from telecine.data.errors import DataError, Deadline, DecodeError
from telecine.data.remote_cache import SIZE_VARIABLE, RemoteCache, cache_folder, max_cache_bytes
from telecine.data.source import (
    LocalSource,
    RemotePath,
    Source,
    TarMember,
    file_of,
    is_hidden,
    kind_of,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ErrorTypes: TypeAlias = tuple[type[Exception], ...]

# The packages of fsspec's protocols.
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "https": "aiohttp",
    "http": "aiohttp",
}
RETRY_SECONDS = (1, 2, 4, 8, 16, 32)  # between attempts
# No attempt after the second begins later: one at a web server that hangs takes 60 seconds, within `clips.timeout`.
_MAX_RETRY_SECONDS = 100
# Errors of the system that are not retried: the request is wrong, or the disk of the cache is full.
_NOT_RETRIED = (
    errno.EINVAL,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
)
# Errors of aiohttp about redirections to other than web servers, and in circles.
_REDIRECTS = ("NonHttpUrlRedirectClientError", "TooManyRedirects")
# The version of a file: the first of these in the answer of a server.
_VERSIONS = ("ETag", "etag", "blob_id", "LastModified", "updated", "Last-Modified")
_MAX_REMOVALS = (
    10  # how often another process may remove a copy between its arrival and its opening
)
# Bytes of a block of a file. A second of 720p takes about one; smaller ones would take as long to request.
BLOCK_BYTES = 2**20
_MAX_REQUEST = (
    2**23
)  # bytes of a part that one request asks for; it is in memory until it is written
_SERVERS_OF_WHOLE_FILES: set[str] = set()  # that were found to send no parts


class RefusedError(DataError):
    """A server refuses a request, and would refuse it again."""


def match(address: str) -> list[RemotePath]:
    """Return the file or folder at an address, or those that match a pattern with `*` or `?`; there may be none."""
    try:
        return [look_up(RemotePath(address), Deadline(address))]
    except FileNotFoundError:
        if address.startswith("http") or not has_magic(address):  # web servers have no listings
            return []
    return with_retries(address, lambda fs: _sorted_paths(fs, fs.glob(address, detail=True)))


def list_files(folder: RemotePath) -> list[RemotePath]:
    """List the files in a folder and its subfolders, in the order of a local folder, without hidden ones."""
    prefix = f"{folder.url.rstrip('/')}/"
    files = with_retries(folder.url, lambda fs: _sorted_paths(fs, fs.find(folder.url, detail=True)))
    return [file for file in files if not is_hidden(PurePosixPath(file.url.removeprefix(prefix)))]


def look_up(file: RemotePath, deadline: Deadline | None = None) -> RemotePath:
    """Return a file or folder with its size and version. The server is asked unless they are known.

    Raises:
        FileNotFoundError: the server says that it does not exist.
        DataError: the server does not answer, refuses, or does not answer by the deadline.
    """
    if file.size is not None or file.is_folder:
        return file
    return with_retries(file.url, lambda fs: _info(file.url, fs, deadline), deadline)


def open_local(
    source: Source,
    opening: Callable[[Any], T],
    deadline: Deadline | None = None,
    *,
    whole: bool = False,
    in_order: bool = False,
) -> T:
    """Open a source on this machine, or one at an address, of which the parts that are read are fetched.

    Args:
        source: The source.
        opening: The function that opens it. It gets the source. Of one at an address it gets a local copy, which may be
            removed as soon as the function has returned, or an open binary file.
        deadline: The time by which what is read of a file at an address must arrive.
        whole: Whether most of the source is read, or its path is needed. It is then fetched at once.
        in_order: Whether small parts are read in order and once, such as the headers of a tar file.

    Returns:
        What `opening` returns.

    Raises:
        DecodeError: a file at an address does not exist.
        DataError: it cannot be fetched, or not by the deadline.
    """
    file = file_of(source)
    if isinstance(file, Path):
        return opening(source)
    try:
        file = look_up(file, deadline)
    except FileNotFoundError as error:
        raise DecodeError(f"{file}: No such file") from error
    if file.is_folder:
        raise DecodeError(f"{file}: a folder")
    if file.size is None:
        raise DecodeError(f"{file}: its server does not tell its size")
    reader = _PartReader(file, deadline)

    def open_again() -> T:
        return opening(_local_source(source, reader, whole=whole, in_order=in_order))

    return _until_not_removed(file, open_again)


def _local_source(
    source: Source, reader: _PartReader, *, whole: bool, in_order: bool
) -> LocalSource:
    """Return a copy of a source at an address, or an open file of its bytes, see `open_local`."""
    part = range(reader.size)
    if isinstance(source, TarMember):
        part = part[
            source.offset : source.offset + source.size
        ]  # a damaged tar file may be shorter
    at_once = whole or len(part) <= BLOCK_BYTES
    is_whole_file = at_once and len(part) == reader.size
    sends_parts = reader.server not in _SERVERS_OF_WHOLE_FILES
    if sends_parts and not is_whole_file and not reader.is_copied:
        try:
            if at_once:
                return reader.copy(part, _suffix(source))
            return reader.open(part, in_order=in_order)
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


class _PartReader:
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

    def open(self, part: range, *, in_order: bool) -> BinaryIO:
        """Open a part as a binary file, whose blocks are kept in the cache.

        Args:
            part: The positions of its bytes.
            in_order: Whether small parts are read in order and once; these are not kept.
        """
        from telecine.data import remote_file  # imports fsspec

        def read_block(start: int, stop: int) -> bytes:
            block = part[start:stop]
            return _until_not_removed(self.file, lambda: self.copy(block, "").read_bytes())

        def read_part(start: int, stop: int) -> bytes:
            return self._read(part[start:stop])

        name = self._name(part, "")  # a title that says nothing: FFmpeg takes names for addresses
        if in_order:
            opened = remote_file.open_windows(len(part), read_part, name)
        else:
            opened = remote_file.open_blocks(len(part), BLOCK_BYTES, read_block, name)
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
            raise _changed(self.file) from error

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
            raise _changed(self.file) from error
        except RefusedError as error:  # a file that is shorter now has no such part
            now = look_up(RemotePath(self.file.url), self._deadline)
            if (now.size, now.version) != (self.file.size, self.file.version):
                raise _changed(self.file) from error
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
    if len(content) < len(part):
        text = f"the connection ended after {len(content)} of {len(part)} bytes"
        raise OSError(errno.EIO, text)
    _check_unchanged(file, fs, deadline)
    return content


def _read_http_part(
    url: str, part: range, fs: AbstractFileSystem, deadline: Deadline | None
) -> bytes:
    """Return some bytes of a file on a web server. If it sends more, the connection ends after some more bytes."""
    from fsspec.callbacks import Callback

    content = io.BytesIO()

    class EnoughError(Exception):
        """More bytes than requested have arrived."""

    def check(value: int, **_: object) -> None:
        if deadline is not None:
            deadline.seconds_left()
        if value > len(part):
            raise EnoughError

    headers = {"Range": f"bytes={part.start}-{part.stop - 1}", "Accept-Encoding": "identity"}
    with suppress(EnoughError):
        fs.get_file(
            url,
            content,
            callback=Callback(hooks={"bound": check}),
            headers=headers,
            **_time_limit(url, deadline),
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
            raise _changed(file)
        if deadline is not None:
            deadline.seconds_left()

    callback = Callback(hooks={"bound": check})
    fs.get_file(
        fs._strip_protocol(file.url),
        str(path),
        callback=callback,
        **_time_limit(file.url, deadline),
    )
    num_bytes = path.stat().st_size
    if num_bytes != file.size:
        raise OSError(errno.EIO, f"the connection ended after {num_bytes} of {file.size} bytes")
    _check_unchanged(file, fs, deadline)


def _check_unchanged(file: RemotePath, fs: AbstractFileSystem, deadline: Deadline | None) -> None:
    now = _info(file.url, fs, deadline)
    if (now.size, now.version) != (file.size, file.version):
        raise _changed(file)


def _changed(file: RemotePath) -> DataError:
    return DataError(
        f"{file}: was changed or removed after it was listed. Run the same command again."
    )


def _time_limit(url: str, deadline: Deadline | None) -> dict[str, float]:
    """Return an option of fsspec's methods: a web server that sends a byte now and then meets all limits of aiohttp."""
    if deadline is None or not url.startswith("http"):
        return {}
    return {"timeout": deadline.seconds_left()}


def _info(url: str, fs: AbstractFileSystem, deadline: Deadline | None) -> RemotePath:
    return _remote_path(url, fs.info(url, **_time_limit(url, deadline)))


def _remote_path(url: str, info: Mapping[str, Any]) -> RemotePath:
    versions = [str(info[name]) for name in _VERSIONS if info.get(name)]
    version = versions[0] if versions else ""
    return RemotePath(url, info["size"], version, is_folder=info["type"] == "directory")


def _sorted_paths(
    fs: AbstractFileSystem, infos: Mapping[str, Mapping[str, Any]]
) -> list[RemotePath]:
    paths = [_remote_path(fs.unstrip_protocol(name), info) for name, info in infos.items()]
    return sorted(paths, key=lambda path: path.path.parts)


def with_retries(
    address: str, call: Callable[[AbstractFileSystem], T], deadline: Deadline | None = None
) -> T:
    """Call a function with the file system of an address; again, after a pause, while the server does not answer.

    Args:
        address: The address, for the file system and for errors.
        call: The function.
        deadline: No attempt begins after it.

    Returns:
        What `call` returns.

    Raises:
        FileNotFoundError: the server says that the file does not exist.
        RefusedError: the server refuses.
        DataError: the server does not answer, or the deadline has passed.
        ImportError: the package for the protocol is not installed.
    """
    fs = _file_system(address)
    network_errors, library_errors = _error_types(_protocol(address))
    start = time.monotonic()
    attempt = 0
    while True:
        attempt += 1
        try:
            return call(fs)
        except (*network_errors, *library_errors) as error:
            cause = _cause_of(error)
            kind = _classify(error, network_errors)
            if kind == "missing":
                raise
            if kind == "refused":
                remedy = "Check the address and the credentials."
                raise RefusedError(
                    f"{address}: cannot be read ({_text(cause)}). {remedy}"
                ) from error
            if deadline is not None:
                deadline.seconds_left()
            passed = time.monotonic() - start
            is_last = attempt > len(RETRY_SECONDS)
            pause = 0 if is_last else RETRY_SECONDS[attempt - 1]
            if is_last or (attempt > 1 and passed + pause > _MAX_RETRY_SECONDS):
                attempts = f"{attempt} attempts in {passed:.0f} seconds"
                remedy = "Check the network, then run the same command again."
                raise DataError(
                    f"{address}: cannot be read after {attempts} ({_text(cause)}). {remedy}"
                ) from error
            logger.warning("%s: %s; trying again in %g seconds", address, _text(cause), pause)
            time.sleep(pause)


def _protocol(address: str) -> str:
    return address.partition("://")[0]


def _file_system(address: str) -> AbstractFileSystem:
    import fsspec  # takes 0.2 seconds, which only remote data should spend

    protocol = _protocol(address)
    options: dict[str, Any] = {}
    if protocol in ("s3", "gs"):
        options["use_listings_cache"] = False  # to notice changes
    try:
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            # By default five minutes for a whole file, and no limit for an answer.
            options["timeout"] = ClientTimeout(total=None, sock_connect=10, sock_read=30)
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        package = PACKAGES[protocol]
        message = f"{address} needs the package {package}, which is not installed. Run `pip install {package}`."
        raise ImportError(message, name=package) from error


def _error_types(protocol: str) -> tuple[_ErrorTypes, _ErrorTypes]:
    """Return the errors of servers and networks, and other errors of a protocol's library. See `_classify`."""
    network_errors: list[type[Exception]] = [OSError, asyncio.TimeoutError]
    library_errors: list[type[Exception]] = []
    if protocol == "s3":
        from botocore import exceptions

        network_errors += [exceptions.HTTPClientError, exceptions.ConnectionError]
        library_errors += [exceptions.BotoCoreError]
    if protocol == "gs":
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError, TransportError

        network_errors += [TransportError]
        library_errors += [HttpError, GoogleAuthError]
    if protocol == "hf":
        from huggingface_hub.errors import HTTPError

        network_errors += [HTTPError]
    else:
        from aiohttp import ClientError

        network_errors += [ClientError]
    return tuple(network_errors), tuple(library_errors)


def _status(error: BaseException) -> int | None:
    """Return the status of HTTP that an error has, if any."""
    response = getattr(error, "response", None)
    return getattr(error, "status", getattr(response, "status_code", None))


def _cause_of(error: Exception) -> BaseException:
    """Return the error of the server: fsspec turns every error of a web server into a `FileNotFoundError` from it."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _classify(
    error: Exception, network_errors: _ErrorTypes
) -> Literal["missing", "refused", "retry"]:
    """Return "missing" if the server says that a file does not exist, "retry" if another attempt may succeed.

    Args:
        error: What fsspec raised.
        network_errors: The errors of servers and networks. Of these, `_may_retry` says which are retried.
    """
    cause = _cause_of(error)
    is_from_server = isinstance(cause, network_errors)
    if is_from_server and _may_retry(cause):
        return "retry"
    if not isinstance(error, FileNotFoundError):
        return "refused"
    # Of a web server, a refusal such as 403 is also a `FileNotFoundError`.
    if cause is error or not is_from_server or _status(cause) in (404, 410):
        return "missing"
    return "refused"


def _may_retry(error: BaseException) -> bool:
    """Return whether another attempt may succeed after an error of a server or network."""
    if type(error).__name__ in _REDIRECTS:
        return False
    status = _status(error)
    if status is not None:
        is_request_wrong = 400 <= status < 500 and status not in (408, 429)
        return not is_request_wrong
    # A `ValueError` is a wrong address.
    if isinstance(error, (FileNotFoundError, PermissionError, ValueError)):
        return False
    return getattr(error, "errno", None) not in _NOT_RETRIED


def _text(error: BaseException) -> str:
    if type(error).__name__ in _REDIRECTS:
        return shorten(f"a redirection that is not followed: {error}")
    return shorten(" ".join(str(error).split()) or type(error).__name__)
