"""Files at `s3://`, `gs://`, `hf://` and `https://`: listed with fsspec, and fetched whole into a local cache.

Processes share the cache. Its size is bounded: the copies that were not used for longest are removed for others.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from glob import has_magic
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from telecine.base.checks import argument_error, shorten
from telecine.base.files import flush, user_cache_folder
from telecine.base.yaml_files import read_package_yaml
from telecine.data.errors import DataError, Deadline, DecodeError
from telecine.data.source import SUFFIXES, RemotePath, Source, TarMember, file_of, is_hidden, kind_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FOLDER_VARIABLE, _SIZE_VARIABLE = "TELECINE_REMOTE_CACHE", "TELECINE_REMOTE_CACHE_GB"
_DEFAULT_GB = 50.0
_RETRY_SECONDS = (1, 2, 4, 8, 16, 32)  # between attempts
# No attempt after the second begins later: one at a web server that hangs takes 60 seconds, within `clips.timeout`.
_MAX_RETRY_SECONDS = 100
# More attempts cannot help: the request is wrong, or the disk of the cache is full.
_PERMANENT = frozenset({errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# The version of a file: the first of these in the answer of a server.
_VERSIONS = ("ETag", "etag", "blob_id", "LastModified", "updated", "Last-Modified")
_POLL_SECONDS = 0.1  # between two looks for room, while other processes fetch files that fill the cache
_MAX_REMOVALS = 10  # how often another process may remove a copy between its arrival and its opening
_PARTIAL, _LOCK, _TOTAL = ".partial", ".lock", "total"
_FOLDER_LOCK = f"folder{_LOCK}"  # held while files of the folder are counted, added or removed
# A copy: a hash with the suffix of the file. While it is fetched, its size in bytes follows.
_COPY = re.compile(rf"[0-9a-f]{{64}}({'|'.join(map(re.escape, SUFFIXES))})?(\.(\d+){_PARTIAL})?")
_LIBRARIES: dict[str, dict[str, Any]] = read_package_yaml(__package__, "remote.yaml")


def match(address: str) -> list[RemotePath]:
    """Return the file or folder at an address, or those that match a pattern with `*` or `?`; there may be none."""
    try:
        return [look_up(RemotePath(address), Deadline(address))]
    except FileNotFoundError:
        if address.startswith("http") or not has_magic(address):  # web servers have no listings
            return []
    return _with_retries(address, lambda fs: _sorted_paths(fs, fs.glob(address, detail=True)))


def list_files(folder: RemotePath) -> list[RemotePath]:
    """List the files in a folder and its subfolders, in the order of a local folder, without hidden ones."""
    prefix = f"{folder.url.rstrip('/')}/"
    files = _with_retries(folder.url, lambda fs: _sorted_paths(fs, fs.find(folder.url, detail=True)))
    return [file for file in files if not is_hidden(PurePosixPath(file.url.removeprefix(prefix)))]


def look_up(file: RemotePath, deadline: Deadline | None = None) -> RemotePath:
    """Return the file or folder with its size and version, from the server unless they are known."""
    if file.size is not None or file.is_folder:
        return file
    return _with_retries(file.url, lambda fs: _info(file.url, fs, deadline), deadline)


def open_local(source: Source, opening: Callable[[Any], T], deadline: Deadline | None = None) -> T:
    """Call `opening` with the local source, or with its copy in the cache, which may be removed afterwards.

    Raises a `DecodeError` if the file does not exist, a `DataError` if it cannot be fetched, or not by the deadline.
    """
    file = file_of(source)
    if isinstance(file, Path):
        return opening(source)
    try:
        known = look_up(file, deadline)
    except FileNotFoundError as error:
        raise DecodeError(f"{file}: No such file") from error
    if known.is_folder or known.size is None:
        raise DecodeError(f"{file}: {'a folder' if known.is_folder else 'its server does not tell its size'}")
    for _ in range(_MAX_REMOVALS):
        copy = _copy_of(known, deadline)
        with suppress(FileNotFoundError):
            return opening(replace(source, archive=copy) if isinstance(source, TarMember) else copy)
    remedy = f"The processes that read need more room: set {_SIZE_VARIABLE} higher."
    raise DataError(f"{file}: was removed from the cache {_MAX_REMOVALS} times before it was opened. {remedy}")


def _download(file: RemotePath, path: Path, fs: AbstractFileSystem, deadline: Deadline | None = None) -> None:
    """Write a file to `path`. It must be the one that was looked up, and not have more bytes."""
    from fsspec.callbacks import Callback

    def check(size: int | None, value: int, **_: object) -> None:
        if max(size or 0, value) > (file.size or 0):
            raise _changed(file)
        if deadline is not None:
            deadline.seconds_left()

    callback = Callback(hooks={"bound": check})
    fs.get_file(fs._strip_protocol(file.url), str(path), callback=callback, **_time_limit(file.url, deadline))
    if path.stat().st_size != file.size:
        raise OSError(errno.EIO, f"the connection ended after {path.stat().st_size} of {file.size} bytes")
    now = _info(file.url, fs, deadline)
    if (now.size, now.version) != (file.size, file.version):
        raise _changed(file)


def _changed(file: RemotePath) -> DataError:
    return DataError(f"{file}: was changed or removed after it was listed. Run the same command again.")


def _time_limit(url: str, deadline: Deadline | None) -> dict[str, float]:
    """Return an option of fsspec's methods: a web server that sends a byte now and then meets all limits of aiohttp."""
    return {"timeout": deadline.seconds_left()} if deadline is not None and url.startswith("http") else {}


def _info(url: str, fs: AbstractFileSystem, deadline: Deadline | None) -> RemotePath:
    return _path_of(url, fs.info(url, **_time_limit(url, deadline)))


def _path_of(url: str, info: Mapping[str, Any]) -> RemotePath:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return RemotePath(url, info["size"], version, info["type"] == "directory")


def _sorted_paths(fs: AbstractFileSystem, found: Mapping[str, Mapping[str, Any]]) -> list[RemotePath]:
    paths = (_path_of(fs.unstrip_protocol(name), info) for name, info in found.items())
    return sorted(paths, key=lambda path: path.path.parts)


def _with_retries(address: str, call: Callable[[AbstractFileSystem], T], deadline: Deadline | None = None) -> T:
    """Call a function with the file system of an address; again, after a pause, while the server does not answer.

    Only a file that does not exist is a `FileNotFoundError`; other answers, and a deadline, are `DataError`s.
    """
    library = _LIBRARIES[address.partition("://")[0]]
    fs = _file_system(address, library["package"])
    temporary = (OSError, asyncio.TimeoutError, *map(resolve_name, library["temporary"]))
    permanent = tuple(map(resolve_name, library.get("permanent", ())))
    start = time.monotonic()
    for attempt, seconds in enumerate((*_RETRY_SECONDS, math.inf), 1):
        try:
            return call(fs)
        except (*temporary, *permanent) as error:
            # fsspec takes every error of a web server for a missing file.
            cause = (error.__cause__ if isinstance(error, FileNotFoundError) else None) or error
            if not isinstance(cause, temporary) or _is_permanent(cause):
                is_answer = cause is error or not isinstance(cause, temporary) or _status(cause) in (404, 410)
                if isinstance(error, FileNotFoundError) and is_answer:
                    raise
                remedy = "Check the address and the credentials."
                raise DataError(f"{address}: cannot be read ({_text(cause)}). {remedy}") from error
            if deadline is not None:
                deadline.seconds_left()
            passed = time.monotonic() - start
            if attempt > 1 and passed + seconds > _MAX_RETRY_SECONDS:
                tries = f"{attempt} attempts in {passed:.0f} seconds"
                remedy = "Check the network, then run the same command again."
                raise DataError(f"{address}: cannot be read after {tries} ({_text(cause)}). {remedy}") from error
            logger.warning("%s: %s; trying again in %g seconds", address, _text(cause), seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _file_system(address: str, package: str) -> AbstractFileSystem:
    import fsspec  # takes 0.2 seconds, which only remote data should spend

    protocol = address.partition("://")[0]
    options: dict[str, Any] = {"use_listings_cache": False} if protocol in ("s3", "gs") else {}  # to notice changes
    try:
        if protocol.startswith("http"):
            from aiohttp import ClientTimeout

            # By default five minutes for a whole file, and no limit for an answer.
            options["timeout"] = ClientTimeout(total=None, sock_connect=10, sock_read=30)
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        message = f"{address} needs the package {package}, which is not installed. Run `pip install {package}`."
        raise ImportError(message, name=package) from error


def _status(error: BaseException) -> int | None:
    return getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))


def _is_permanent(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    refused = isinstance(error, (FileNotFoundError, PermissionError, ValueError))  # a `ValueError` is a wrong address
    return refused or getattr(error, "errno", None) in _PERMANENT


def _text(error: BaseException) -> str:
    return shorten(" ".join(str(error).split()) or type(error).__name__)


def _cache_folder() -> Path:
    """Return the folder of the copies, which need not exist: `telecine` in `$TELECINE_REMOTE_CACHE` if it is set."""
    chosen = os.environ.get(_FOLDER_VARIABLE)
    return Path(chosen) / "telecine" if chosen else user_cache_folder() / "remote"


def _max_bytes() -> int:
    """Return the size of the cache, `$TELECINE_REMOTE_CACHE_GB`; raise a `ValueError` unless it is above 0."""
    text = os.environ.get(_SIZE_VARIABLE) or str(_DEFAULT_GB)
    with suppress(ValueError, OverflowError):
        if (size := round(float(text) * 1e9)) >= 1:
            return size
    raise argument_error(_SIZE_VARIABLE, "a number of gigabytes above 0", text, f"The default is {_DEFAULT_GB:g}.")


def _copy_of(file: RemotePath, deadline: Deadline | None) -> Path:
    """Return the copy of a file whose size and version are known; fetch it unless it is in the cache."""
    suffix = file.suffix.lower() if kind_of(file) else ""
    identity = f"{file.url}\n{file.size}\n{file.version}"  # hashed, so that no address leads out of the folder
    copy = _cache_folder() / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()}{suffix}"
    if not _mark_used(copy):
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(copy)):  # other processes that need the file wait for it
            if not _mark_used(copy):
                _fetch(file, copy, deadline)
    return copy


def _mark_used(copy: Path) -> bool:
    with suppress(FileNotFoundError):
        os.utime(copy)
        return True
    return False


def _lock_of(path: Path) -> Path:
    """Return the file of the lock that is held while a copy is fetched: one of 256, so that they do not accumulate."""
    return path.with_name(f"{path.name[:2]}{_LOCK}")


def _fetch(file: RemotePath, copy: Path, deadline: Deadline | None) -> None:
    size, limit = file.size or 0, _max_bytes()
    if size > limit:
        remedy = f"Set {_SIZE_VARIABLE} higher, or split the file."
        raise DataError(f"{file}: {size} bytes, more than the {limit} bytes of the cache. {remedy}")
    part = copy.with_name(f"{copy.name}.{size}{_PARTIAL}")
    while not _reserve(part, size, limit):
        time.sleep(_POLL_SECONDS)
    try:
        _with_retries(file.url, lambda fs: _download(file, part, fs, deadline), deadline)
        flush([part])  # a copy must not appear whole and be empty after a power failure
        with FileLock(copy.with_name(_FOLDER_LOCK)):
            os.replace(part, copy)
    except FileNotFoundError as error:
        raise _changed(file) from error
    finally:
        with FileLock(copy.with_name(_FOLDER_LOCK)):
            if part.exists():
                part.unlink()
                (copy.parent / _TOTAL).write_text(str((_read_total(copy.parent) or size) - size))


def _reserve(part: Path, size: int, limit: int) -> bool:
    """Make room for a file, and create it empty; its name has the size. Return false if there is no room now."""
    folder = part.parent
    with FileLock(folder / _FOLDER_LOCK):
        part.unlink(missing_ok=True)
        total = _read_total(folder)
        if total is None or total + size > limit:
            total = _make_room(limit - size, part)
        if total + size > limit:
            return False
        (folder / _TOTAL).write_text(str(total + size))
        part.touch()
        return True


def _read_total(folder: Path) -> int | None:
    """Return the bytes of all files, or None if they must be counted. After a crash it may be too high."""
    with suppress(FileNotFoundError, ValueError):
        return int((folder / _TOTAL).read_text())
    return None


def _make_room(limit: int, own: Path) -> int:
    """Remove the least recently used copies until the others have at most `limit` bytes, and return their bytes."""
    copies: list[tuple[float, Path, int]] = []  # time of last use, path, bytes
    for path in own.parent.iterdir():
        if match := _COPY.fullmatch(path.name):
            status = path.stat()
            copies.append((status.st_mtime, path, int(match[3] or status.st_size)))
    total = sum(size for *_, size in copies)
    for number, (_, path, size) in enumerate(sorted(copies)):
        if total <= limit and number >= len(copies) // 100:  # more room: counting takes long in a large folder
            break
        if path.suffix != _PARTIAL or _is_abandoned(path, own):
            path.unlink()
            total -= size
    return total


def _is_abandoned(part: Path, own: Path) -> bool:
    """Return whether no process fetches a file any more. This thread holds the lock of the copy that `own` becomes."""
    with suppress(Timeout), nullcontext() if _lock_of(part) == _lock_of(own) else FileLock(_lock_of(part), timeout=0):
        return True
    return False
