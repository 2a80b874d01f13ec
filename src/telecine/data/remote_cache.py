"""Copies of remote files in a local folder of bounded size, which processes share."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from telecine.base.checks import argument_error
from telecine.base.files import user_cache_folder
from telecine.data.source import IMAGE_SUFFIXES, VIDEO_SUFFIXES, DataError, RemotePath

T = TypeVar("T")

FOLDER_VARIABLE, SIZE_VARIABLE = "TELECINE_REMOTE_CACHE", "TELECINE_REMOTE_CACHE_GB"
DEFAULT_GB = 50.0
# Seconds between two looks for room, while other processes fetch files that fill the cache.
_POLL_SECONDS = 0.1
# How often a copy may be removed between its arrival and its opening: another process has taken its room.
_MAX_REMOVALS = 10
_PARTIAL, _LOCK, _TOTAL = ".partial", ".lock", "total"
# A copy: a hash with the suffix of the file. While it is fetched, its size in bytes follows.
_COPY = re.compile(rf"[0-9a-f]{{64}}({'|'.join(map(re.escape, VIDEO_SUFFIXES | IMAGE_SUFFIXES))})?(\.(\d+){_PARTIAL})?")


def cache_folder() -> Path:
    """Return a folder for copies only; it need not exist.

    It is `telecine` in `$TELECINE_REMOTE_CACHE`, or `telecine/remote` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen) / "telecine"
    return user_cache_folder() / "remote"


def max_bytes() -> int:
    """Return the size of the cache, `$TELECINE_REMOTE_CACHE_GB` in bytes.

    Raises:
        ValueError: it is not a number above 0.
    """
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    try:
        size = round(float(text) * 1e9)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argument_error(SIZE_VARIABLE, "a number of gigabytes above 0", text, f"The default is {DEFAULT_GB:g}.")
    return size


def open_cached(file: RemotePath, fetch: Callable[[Path], object], opening: Callable[[Path], T]) -> T:
    """Call `opening` with the copy of a file whose size and version are known.

    The files that were not used for longest are removed for others. A copy that is open stays readable then. Names in
    the folder are hashes, so that no address leads out of it.

    Args:
        file: The file.
        fetch: Function that writes its content to a path, if there is no copy.
        opening: Function that opens the copy.

    Raises:
        DataError: the file is larger than the cache.
    """
    folder = cache_folder()
    identity = f"{file.url}\n{file.size}\n{file.version}"
    suffix = file.suffix.lower() if file.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES else ""
    copy = folder / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()}{suffix}"
    for _ in range(_MAX_REMOVALS):
        if not _mark_used(copy):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(_lock_of(copy)):  # other processes that need the file wait for it
                if not _mark_used(copy):
                    _fetch(file, copy, fetch)
        try:
            return opening(copy)
        except FileNotFoundError:
            continue
    remedy = f"The processes that read need more room: set {SIZE_VARIABLE} higher."
    raise DataError(f"{file}: was removed from the cache {_MAX_REMOVALS} times before it was opened. {remedy}")


def _mark_used(copy: Path) -> bool:
    """Note that a copy is used now, and return whether it exists."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _lock_of(path: Path) -> Path:
    """Return the lock that is held while a copy is fetched: one of 256, so that they do not accumulate."""
    return path.with_name(f"{path.name[:2]}{_LOCK}")


def _folder_lock(folder: Path) -> FileLock:
    """Return the lock that is held while files of the folder are counted, added or removed."""
    return FileLock(folder / f"folder{_LOCK}")


def _fetch(file: RemotePath, copy: Path, fetch: Callable[[Path], object]) -> None:
    size, limit = file.size or 0, max_bytes()
    if size > limit:
        remedy = f"Set {SIZE_VARIABLE} higher, or split the file."
        raise DataError(f"{file}: {size} bytes, more than the {limit} bytes of the cache. {remedy}")
    partial = copy.with_name(f"{copy.name}.{size}{_PARTIAL}")
    while not _reserve(partial, size, limit):
        time.sleep(_POLL_SECONDS)
    try:
        fetch(partial)
        with partial.open("rb+") as content:
            os.fsync(content.fileno())  # a copy must not appear whole and be empty after a power failure
        with _folder_lock(copy.parent):
            os.replace(partial, copy)
    finally:
        with _folder_lock(copy.parent):
            if partial.exists():
                partial.unlink()
                _write_total(copy.parent, (_read_total(copy.parent) or size) - size)


def _reserve(partial: Path, size: int, limit: int) -> bool:
    """Make room for a file, and create it empty; its name has the size. Return false if there is no room now."""
    folder = partial.parent
    with _folder_lock(folder):
        partial.unlink(missing_ok=True)
        total = _read_total(folder)
        if total is None or total + size > limit:
            total = _make_room(limit - size, partial)
        if total + size > limit:
            return False
        _write_total(folder, total + size)
        partial.touch()
        return True


def _read_total(folder: Path) -> int | None:
    """Return the bytes of all files, or None if they must be counted. After a crash it may be more than there are."""
    try:
        return int((folder / _TOTAL).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write_total(folder: Path, total: int) -> None:
    (folder / _TOTAL).write_text(str(total))


def _make_room(left: int, own: Path) -> int:
    """Remove copies until the others take at most `left` bytes, and return how many they take.

    One copy in a hundred is removed at least, because counting takes long in a large folder. The lock of the copy that
    `own` becomes is held by this thread.
    """
    sizes: dict[Path, int] = {}
    last_used: dict[Path, float] = {}
    for path in own.parent.iterdir():
        if match := _COPY.fullmatch(path.name):
            status = path.stat()
            sizes[path] = int(match[3] or status.st_size)
            last_used[path] = status.st_mtime
    total, at_least = sum(sizes.values()), len(sizes) // 100
    for number, path in enumerate(sorted(sizes, key=last_used.__getitem__)):
        if total <= left and number >= at_least:
            break
        if path.suffix != _PARTIAL or _is_abandoned(path, own):
            path.unlink()
            total -= sizes[path]
    return total


def _is_abandoned(partial: Path, own: Path) -> bool:
    """Return whether the process that fetched a file has ended."""
    if _lock_of(partial) == _lock_of(own):
        return True
    try:
        with FileLock(_lock_of(partial), timeout=0):
            return True
    except Timeout:
        return False
