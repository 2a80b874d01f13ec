"""Files at `s3://`, `gs://`, `hf://` and `https://`: listed with fsspec, and asked for again if a server fails."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Mapping
from glob import has_magic
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from telecine.base.checks import shorten
from telecine.base.files import OUTPUT_MARKER
from telecine.data.errors import DataError, Deadline
from telecine.data.source import RemotePath, is_hidden

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

# The file systems of this process and, in a forked worker, those of its parent. fsspec drops the latter in the worker.
# s3fs closes the connections of a file system that is collected, and would take them from the parent.
_FILE_SYSTEMS: set[AbstractFileSystem] = set()


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


def list_files(folder: RemotePath) -> tuple[list[RemotePath], list[str]]:
    """List the files in a folder and its subfolders, in the order of a local folder, without hidden ones.

    Returns:
        The files, and the addresses of subfolders that telecine wrote, whose files are left out.
    """
    prefix = f"{folder.url.rstrip('/')}/"
    files = with_retries(folder.url, lambda fs: _sorted_paths(fs, fs.find(folder.url, detail=True)))
    outputs: list[str] = []
    for file in files:
        parent, _, name = file.url.rpartition("/")
        if name == OUTPUT_MARKER and f"{parent}/" != prefix:
            outputs.append(parent)
    listed = []
    output_prefixes = tuple(f"{output}/" for output in outputs)
    for file in files:
        is_output = file.url.startswith(output_prefixes)
        if not is_output and not is_hidden(file.url.removeprefix(prefix)):
            listed.append(file)
    return listed, outputs


def look_up(
    file: RemotePath, deadline: Deadline | None = None, *, from_listing: bool = False
) -> RemotePath:
    """Return a file or folder with its size and version. The server is asked unless they are known.

    Args:
        file: The file or folder.
        deadline: The time by which the server must answer.
        from_listing: See `info_of`.

    Raises:
        FileNotFoundError: the server says that it does not exist.
        DataError: the server does not answer, refuses, or does not answer by the deadline.
    """
    if file.size is not None or file.is_folder:
        return file

    def ask(fs: AbstractFileSystem) -> RemotePath:
        return info_of(file.url, fs, deadline, from_listing=from_listing)

    return with_retries(file.url, ask, deadline)


def time_limit(url: str, deadline: Deadline | None) -> dict[str, float]:
    """Return an option of fsspec's methods: a web server that sends a byte now and then meets all limits of aiohttp."""
    if deadline is None or not url.startswith("http"):
        return {}
    return {"timeout": deadline.seconds_left()}


def info_of(
    url: str, fs: AbstractFileSystem, deadline: Deadline | None, *, from_listing: bool = False
) -> RemotePath:
    """Ask the server of a file or folder for its size and version.

    Args:
        url: The address.
        fs: Its file system.
        deadline: The time by which the server must answer.
        from_listing: Whether the first listing of its folder may answer for the Hub, which limits the number of
            requests. It is one request for all files of a folder.
    """
    options: dict[str, Any] = time_limit(url, deadline)
    if _protocol(url) == "hf" and not from_listing:
        # Without `refresh`, it answers from the first listing; without `expand_info`, its answer has no version.
        options = {"refresh": True, "expand_info": True}
    return _remote_path(url, fs.info(url, **options))


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
                deadline.check()
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
        fs = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        package = PACKAGES[protocol]
        message = f"{address} needs the package {package}, which is not installed. Run `pip install {package}`."
        raise ImportError(message, name=package) from error
    _FILE_SYSTEMS.add(fs)
    return fs


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
