"""A lock on the folder of a run: one process at a time trains in it."""

import errno
import json
import logging
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import psutil

from telecine.base.checks import argument_error
from telecine.base.files import OUTPUT_MARKER, open_regular, partial_path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_REMEDY = "Use another --output_dir, or wait. If that process is gone, add --steal_lock."
# A lock without contents is older than this only if its process ended before it wrote them.
_SECONDS_TO_WRITE = 10.0
# Another process can have the number of one that has ended, but not its start; clocks are adjusted by less than this.
_CLOCK_TOLERANCE = 5.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# In the file of a lock: identifies this process.
_PROCESS = uuid.uuid4().hex
# The files that this process has locked.
_held: set[BinaryIO] = set()
logger = logging.getLogger(__name__)


class RunLock:
    """The lock on the folder of a run, which is created, until `release`; a `ValueError` if another process has it.

    A file names the holder, who has the kernel's lock on it (`flock`): it ends with the process, and depends on no
    clock and on no name or number, which two containers may share. On a file system without such locks the file alone
    decides: that of a process of this machine that has ended is taken over. With `steal`, that of any process is.
    """

    def __init__(self, run: Path, *, steal: bool = False) -> None:
        self.path = run / LOCK_FILE
        self.holder: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "process": _PROCESS}
        self.holder["started"] = _started_at(os.getpid())
        try:
            self._was_empty = run.is_dir() and not any(run.iterdir())  # the user has made it
            while (file := self._take(steal=steal)) is None:
                pass
            self._file = file
            self._file.truncate(0)
            self._file.write(json.dumps(self.holder).encode())
            os.fsync(self._file.fileno())
            self.taken_at = os.fstat(self._file.fileno()).st_ctime  # by the clock of the file system
        except OSError as error:
            mount = next(str(folder) for folder in run.absolute().parents if folder.is_mount())
            got = f"{run} ({error.strerror}; its file system is mounted at {mount})"
            raise argument_error("output_dir", "a folder that can be made", got, "Choose another one.") from error

    def _take(self, *, steal: bool) -> BinaryIO | None:
        """Return the open file if this process has taken the lock, or None to try again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)  # again, if another run has just removed it in `release`
        file, is_new = _open(self.path)
        if file is None:
            return None
        is_locked = self.holder["kernel"] = _flock(file)
        if is_locked is None and is_new:
            logger.warning("%s: this file system has no locks of processes; the file alone names the owner", self.path)
            return file
        found = _read(self.path)
        if is_locked and _is_at(file, self.path):
            if not found or steal or _is_over(found, is_locked=True):
                _held.add(file)
                return file
            self._refuse(found)
        file.close()
        if found is None:
            time.sleep(0.1)
        elif is_locked is None:
            self._remove_stale(found, steal=steal)
        elif not is_locked and (steal or (found.get("process") == _PROCESS and found["pid"] == os.getpid())):
            self.path.unlink(missing_ok=True)
        elif not is_locked:
            self._refuse(found)
        return None

    def _refuse(self, holder: dict[str, Any]) -> NoReturn:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("started")))
        who = f"process {holder['pid']} on {holder['host']} trains, started {started}" if holder else "a process trains"
        raise argument_error("output_dir", "used by one run at a time", f"{self.path.parent}, in which {who}", _REMEDY)

    def _remove_stale(self, found: dict[str, Any], *, steal: bool) -> None:
        """Remove the file of a process that has ended, on a file system without locks of the kernel."""
        if found and not (steal or _is_over(found, is_locked=False)):
            self._refuse(found)
        moved = partial_path(self.path)
        with suppress(FileNotFoundError):
            self.path.rename(moved)  # succeeds in one process only
            if _read(moved) != found:  # that of another process, which has taken the stale one over meanwhile
                os.replace(moved, self.path)
            moved.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the lock, unless it was stolen, and the folder if it is new and nothing was written into it."""
        run = self.path.parent
        try:
            if _read(self.path) == self.holder:
                self.path.unlink()
            if run.is_dir() and {path.name for path in run.iterdir()} <= {OUTPUT_MARKER}:
                (run / OUTPUT_MARKER).unlink(missing_ok=True)
                if not self._was_empty:
                    run.rmdir()
        except OSError as error:  # the next run takes it over; the error that has ended this one is not hidden
            logger.warning("cannot remove %s: %s", self.path, error.strerror)
        _held.discard(self._file)
        self._file.close()


def _open(path: Path) -> tuple[BinaryIO | None, bool]:
    """Return a file to read and write, and whether it is new; None if it was just removed."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    for is_new in (True, False):
        with suppress(FileExistsError, FileNotFoundError):
            descriptor = os.open(path, flags | (is_new and os.O_CREAT | os.O_EXCL), 0o666)
            return os.fdopen(descriptor, "r+b", buffering=0), is_new
    return None, False


def _flock(file: BinaryIO) -> bool | None:
    """Return whether this process got the kernel's lock on a file; None if the file system has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


if hasattr(os, "register_at_fork"):  # a worker may outlive its parent, and must not hold its locks
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


def _is_at(file: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _read(path: Path) -> dict[str, Any] | None:
    """Return the holder of a lock; None if it was just removed or is being written, nothing if it never was written."""
    try:
        with open_regular(path, follow=False) as file:
            content = file.read(4096)
            is_new = time.time() - os.fstat(file.fileno()).st_mtime < _SECONDS_TO_WRITE
    except FileNotFoundError:
        return None
    try:
        found = json.loads(content)
    except ValueError:
        return None if is_new else {}
    return found if isinstance(found, dict) and _is_holder(**found) else {}


def _is_holder(host: object = None, pid: object = None, started: object = None, **_: object) -> bool:
    are_numbers = type(pid) is int and 0 < pid < 2**31 and isinstance(started, (int, float)) and 0 <= started < 2**33
    return isinstance(host, str) and are_numbers


def _is_over(holder: dict[str, Any], *, is_locked: bool) -> bool:
    """Return whether the holder of a lock is this process, or one of this machine that has ended."""
    if holder["host"] != socket.gethostname():
        return False
    if is_locked and holder.get("kernel"):  # of two processes, one has the kernel's lock
        return True
    started = _started_at(holder["pid"])
    is_gone = started is None or abs(started - holder["started"]) > _CLOCK_TOLERANCE
    return is_gone or holder["pid"] == os.getpid()


def _started_at(pid: int) -> float | None:
    """Return when a process of this machine started, in seconds since the epoch; None if there is none."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).create_time()
    return None
