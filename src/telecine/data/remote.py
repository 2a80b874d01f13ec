"""Files at `s3://`, `gs://`, `hf://` and `https://`: listed with fsspec, and fetched whole into a local cache."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import posixpath
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from telecine.base.checks import shorten
from telecine.data.remote_cache import open_cached
from telecine.data.source import DataError, DecodeError, RemotePath, Source, TarMember, file_of, is_hidden

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between attempts.
RETRY_SECONDS = (1, 2, 4, 8, 16, 32)
# After the second one, no attempt begins later than this. One at a web server that hangs takes 60 seconds, so that the
# last one ends before `clips.timeout` does.
_MAX_RETRY_SECONDS = 100
# Other attempts would not help: the request is wrong, or the disk of the cache is full.
_PERMANENT = frozenset({errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# The first of these that a server tells is the version of a file.
_VERSIONS = ("ETag", "etag", "blob_id", "LastModified", "updated", "Last-Modified")


@dataclass(frozen=True)
class _Library:
    """What reads a protocol for fsspec."""

    package: str
    """The package to install."""
    temporary: tuple[str, ...]
    """Errors that another attempt may mend, besides those of the operating system."""
    others: tuple[str, ...] = ()
    """Errors that it may not."""
    options: Callable[[], dict[str, Any]] = dict
    """Function that returns the options of the file system."""


def _bucket_options() -> dict[str, Any]:
    return {"use_listings_cache": False}  # with it, a change after the listing would not be noticed


def _http_options() -> dict[str, Any]:
    from aiohttp import ClientTimeout

    # By default five minutes for a whole file, and no limit for an answer.
    return {"timeout": ClientTimeout(total=None, sock_connect=10, sock_read=30)}


_HTTP = _Library("aiohttp", ("aiohttp:ClientError",), options=_http_options)
_LIBRARIES = {
    "s3": _Library(
        "s3fs",
        ("botocore.exceptions:HTTPClientError", "botocore.exceptions:ConnectionError", "aiohttp:ClientError"),
        ("botocore.exceptions:BotoCoreError",),
        _bucket_options,
    ),
    "gs": _Library(
        "gcsfs",
        ("aiohttp:ClientError", "google.auth.exceptions:TransportError"),
        ("gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError"),
        _bucket_options,
    ),
    "hf": _Library("huggingface_hub", ("huggingface_hub.errors:HTTPError",)),
    "https": _HTTP,
    "http": _HTTP,
}


def match(address: str) -> list[RemotePath]:
    """Return the files and folders that an address names, or a pattern with `*` or `?`; nothing if there are none.

    Web servers have no listings, so `https://` has neither patterns nor folders.
    """
    try:
        return [look_up(RemotePath(address))]
    except FileNotFoundError:
        if address.startswith("http") or not has_magic(address):
            return []
    return _sorted(with_retries(address, lambda fs: _listed(fs, fs.glob(address, detail=True))))


def files_below(folder: RemotePath) -> list[RemotePath]:
    """List the files in a folder and its subfolders, in the order of a local folder, without hidden ones."""
    prefix = f"{folder.url.rstrip('/')}/"
    files = with_retries(folder.url, lambda fs: _listed(fs, fs.find(folder.url, detail=True)))
    return _sorted([file for file in files if not is_hidden(PurePosixPath(file.url.removeprefix(prefix)))])


def look_up(file: RemotePath) -> RemotePath:
    """Return the file or folder with its size and version, which the server is asked for unless they are known.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: it cannot be read.
    """
    if file.size is not None or file.is_folder:
        return file
    return with_retries(file.url, partial(_look_up, file.url))


def sibling(file: RemotePath, name: str) -> RemotePath:
    """Return the file that has this path relative to the folder of `file`."""
    protocol, _, _ = file.url.partition("://")
    return RemotePath(f"{protocol}://{posixpath.normpath(file.path.parent / name)}")


def open_local(source: Source, opening: Callable[[Any], T]) -> T:
    """Call `opening` with a local source: the source itself, or its copy in the cache, which is fetched if needed.

    The copy may be removed once `opening` has returned: what it opened stays readable.

    Raises:
        DecodeError: the file does not exist.
        DataError: it cannot be fetched.
    """
    file = file_of(source)
    if isinstance(file, Path):
        return opening(source)
    try:
        known = look_up(file)
    except FileNotFoundError as error:
        raise DecodeError(f"{file}: No such file") from error
    if known.is_folder or known.size is None:
        raise DecodeError(f"{file}: {'a folder' if known.is_folder else 'its server does not tell its size'}")

    def fetch(path: Path) -> None:
        try:
            with_retries(file.url, partial(_fetch, known, path))
        except FileNotFoundError as error:
            raise _changed(known) from error

    return open_cached(known, fetch, partial(_open_copy, source, opening))


def _open_copy(source: Source, opening: Callable[[Any], T], copy: Path) -> T:
    if isinstance(source, TarMember):
        return opening(TarMember(copy, source.name, source.offset, source.size))
    return opening(copy)


def _fetch(file: RemotePath, path: Path, fs: AbstractFileSystem) -> None:
    """Write a file to `path`. It must be the one that was looked up, and not have more bytes."""
    from fsspec.callbacks import Callback

    def check(size: int | None, value: int, **_: object) -> None:
        if max(size or 0, value) > (file.size or 0):
            raise _changed(file)

    fs.get_file(fs._strip_protocol(file.url), str(path), callback=Callback(hooks={"bound": check}))
    if path.stat().st_size != file.size:
        raise OSError(errno.EIO, f"the connection ended after {path.stat().st_size} of {file.size} bytes")
    now = _look_up(file.url, fs)
    if (now.size, now.version) != (file.size, file.version):
        raise _changed(file)


def _changed(file: RemotePath) -> DataError:
    return DataError(f"{file}: was changed or removed after it was listed. Run the same command again.")


def _look_up(url: str, fs: AbstractFileSystem) -> RemotePath:
    return _described(url, fs.info(url))


def _listed(fs: AbstractFileSystem, found: Mapping[str, Mapping[str, Any]]) -> list[RemotePath]:
    return [_described(fs.unstrip_protocol(name), info) for name, info in found.items()]


def _described(url: str, info: Mapping[str, Any]) -> RemotePath:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return RemotePath(url, info["size"], version, info["type"] == "directory")


def _sorted(files: list[RemotePath]) -> list[RemotePath]:
    return sorted(files, key=lambda file: file.path.parts)


def with_retries(address: str, call: Callable[[AbstractFileSystem], T]) -> T:
    """Call a function with the file system of an address; again, after a while, if the server does not answer.

    Raises:
        FileNotFoundError: the server says that the file does not exist.
        DataError: the server refuses the request, or did not answer in any attempt.
        ImportError: the package that the protocol needs is not installed.
    """
    library = _LIBRARIES[address.partition("://")[0]]
    fs = _file_system(address, library)
    temporary = (OSError, asyncio.TimeoutError, *map(resolve_name, library.temporary))
    others = tuple(map(resolve_name, library.others))
    start = time.monotonic()
    for attempt, seconds in enumerate((*RETRY_SECONDS, math.inf), 1):
        try:
            return call(fs)
        except (*temporary, *others) as error:  # noqa: PERF203 - the server is slower
            cause = _cause(error)
            if not isinstance(cause, temporary) or _is_permanent(cause):
                is_answer = cause is error or not isinstance(cause, temporary) or _status(cause) in (404, 410)
                if isinstance(error, FileNotFoundError) and is_answer:
                    raise
                remedy = "Check the address and the credentials."
                raise DataError(f"{address}: cannot be read ({_text(cause)}). {remedy}") from error
            passed = time.monotonic() - start
            if attempt > 1 and passed + seconds > _MAX_RETRY_SECONDS:
                tries = f"{attempt} attempts in {passed:.0f} seconds"
                remedy = "Check the network, then run the same command again."
                raise DataError(f"{address}: cannot be read after {tries} ({_text(cause)}). {remedy}") from error
            logger.warning("%s: %s; trying again in %g seconds", address, _text(cause), seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _file_system(address: str, library: _Library) -> AbstractFileSystem:
    import fsspec  # takes 0.2 seconds, which only remote data should spend

    try:
        return fsspec.filesystem(address.partition("://")[0], **library.options())
    except ImportError as error:
        package = library.package
        message = f"{address} needs the package {package}, which is not installed. Run `pip install {package}`."
        raise ImportError(message, name=package) from error


def _cause(error: BaseException) -> BaseException:
    """Return the error itself, or its cause: fsspec takes every error of a web server for a missing file."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of aiohttp, or of huggingface_hub."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return getattr(error, "status", status)


def _is_permanent(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    refused = isinstance(error, (FileNotFoundError, PermissionError, ValueError))  # a `ValueError` is a wrong address
    return refused or getattr(error, "errno", None) in _PERMANENT


def _text(error: BaseException) -> str:
    return shorten(" ".join(str(error).split()) or type(error).__name__)
