"""Copies of remote files in a folder of bounded size, which processes share."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from telecine.base.checks import argument_error
from telecine.base.files import flush, user_cache_folder
from telecine.data.source import SUFFIXES

FOLDER_VARIABLE = "TELECINE_REMOTE_CACHE"
SIZE_VARIABLE = "TELECINE_REMOTE_CACHE_GB"
DEFAULT_GB = 50.0
# Between two looks for room, while other processes fetch files that fill the cache.
_POLL_SECONDS = 0.1
_PARTIAL = ".partial"
_LOCK = ".lock"
_FOLDER_LOCK = f"folder{_LOCK}"  # held while files of the folder are counted, added or removed
_TOTAL = "total"  # the file with the bytes of all copies. After a crash they may be too many.
# A copy: a hash with the suffix of the file. While it is fetched, its size in bytes follows.
_COPY = re.compile(
    rf"[0-9a-f]{{64}}({'|'.join(map(re.escape, sorted(SUFFIXES)))})?(\.(\d+){_PARTIAL})?"
)


def cache_folder() -> Path:
    """Return the folder of the copies, which need not exist: `telecine` in `$TELECINE_REMOTE_CACHE` if it is set."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) / "telecine" if folder else user_cache_folder() / "remote"


def max_cache_bytes() -> int:
    """Return the size of the cache, `$TELECINE_REMOTE_CACHE_GB`, in bytes.

    Raises:
        ValueError: the variable is not a number above 0.
    """
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    try:
        size = round(float(text) * 1e9)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argument_error(
            SIZE_VARIABLE, "a number of gigabytes above 0", text, f"The default is {DEFAULT_GB:g}."
        )
    return size


@dataclass(frozen=True)
class _Copy:
    last_use: float  # time in seconds
    path: Path
    size: int  # bytes, or those that it will have

    @property
    def is_partial(self) -> bool:
        return self.path.suffix == _PARTIAL


class RemoteCache:
    """Copies of files in a folder. The copies that were not used for longest are removed for others.

    Args:
        folder: The folder, which need not exist. Other files in it are neither counted nor removed.
        max_bytes: Largest number of bytes of all copies, those that are being fetched included.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def has(self, name: str) -> bool:
        """Return whether there is a copy, and note that it is used now. Another process may remove it at any time."""
        return _mark_used(self.folder / name)

    def copy(self, name: str, size: int, fetch: Callable[[Path], object]) -> Path:
        """Return the copy of a file, which another process may remove at any time.

        Args:
            name: Name of the copy: a hash of 64 hexadecimal digits, with a suffix of `SUFFIXES` or none.
            size: Size of the file in bytes, at most `max_bytes`.
            fetch: Writes the file to the path that it gets. It is called if there is no copy.
        """
        copy = self.folder / name
        if not _mark_used(copy):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(_lock_path(copy)):  # other processes that need the file wait for it
                if not _mark_used(copy):
                    self._add(copy, size, fetch)
        return copy

    def _add(self, copy: Path, size: int, fetch: Callable[[Path], object]) -> None:
        part = copy.with_name(f"{copy.name}.{size}{_PARTIAL}")
        while not self._reserve(part, size):
            time.sleep(_POLL_SECONDS)
        try:
            fetch(part)
            flush([part])  # a copy must not appear whole and be empty after a power failure
            with FileLock(self.folder / _FOLDER_LOCK):
                os.replace(part, copy)
        finally:
            with FileLock(self.folder / _FOLDER_LOCK):
                if part.exists():
                    part.unlink()
                    total = self._read_total() or size
                    self._write_total(total - size)

    def _reserve(self, part: Path, size: int) -> bool:
        """Make room for a file, and create it empty; its name has the size. Return false if there is no room now."""
        with FileLock(self.folder / _FOLDER_LOCK):
            part.unlink(missing_ok=True)
            total = self._read_total()
            if total is None or total + size > self.max_bytes:
                total = self._remove_copies(self.max_bytes - size, part)
            if total + size > self.max_bytes:
                return False
            self._write_total(total + size)
            part.touch()
            return True

    def _read_total(self) -> int | None:
        """Return the bytes of all copies, or None if they must be counted."""
        try:
            return int((self.folder / _TOTAL).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _write_total(self, num_bytes: int) -> None:
        (self.folder / _TOTAL).write_text(str(num_bytes))

    def _remove_copies(self, limit: int, part: Path) -> int:
        """Remove the least recently used copies until the others have at most `limit` bytes, and return their bytes."""
        copies = self._list_copies()
        total = sum(copy.size for copy in copies)
        # More room than is needed: counting takes long in a large folder.
        num_removed_at_least = len(copies) // 100
        for number, copy in enumerate(copies):
            if total <= limit and number >= num_removed_at_least:
                break
            if not copy.is_partial or _is_abandoned(copy.path, part):
                copy.path.unlink()
                total -= copy.size
        return total

    def _list_copies(self) -> list[_Copy]:
        """Return the copies, and those that are being fetched, in the order of their last use."""
        copies = []
        for path in self.folder.iterdir():
            match = _COPY.fullmatch(path.name)
            if match is not None:
                status = path.stat()
                copies.append(_Copy(status.st_mtime, path, int(match[3] or status.st_size)))
        return sorted(copies, key=lambda copy: (copy.last_use, copy.path))


def _mark_used(copy: Path) -> bool:
    """Note that a copy is used now. Return false if there is none."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _lock_path(copy: Path) -> Path:
    """Return the file of the lock that is held while a copy is fetched: one of 256, so that they do not accumulate."""
    return copy.with_name(f"{copy.name[:2]}{_LOCK}")


def _is_abandoned(part: Path, own_part: Path) -> bool:
    """Return whether no process fetches a file any more. This thread holds the lock of `own_part`."""
    lock = _lock_path(part)
    if lock == _lock_path(own_part):
        return True
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False
