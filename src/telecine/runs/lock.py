"""A lock on the folder of a run: one process at a time trains in it."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from telecine.base.checks import argument_error
from telecine.base.files import OUTPUT_MARKER, partial_path

LOCK_FILE = ".lock"
_REMEDY = "Use another --output_dir, or wait. If that process is gone, add --steal_lock."
# A lock without contents is older than this only if its process ended before it wrote them.
_SECONDS_TO_WRITE = 10.0
# Another process can have the number of one that has ended, but not its start; clocks are adjusted by less than this.
_CLOCK_TOLERANCE = 5.0


class RunLock:
    """The lock on the folder of a run, which is created, until `release`.

    A file that names its holder, created exclusively: that also works on file systems without `flock`. The lock of a
    process of this machine that has ended, or of this process itself, is taken over; with `steal`, that of any process.

    Raises:
        ValueError: Another process holds the lock.
    """

    def __init__(self, run: Path, *, steal: bool = False) -> None:
        self.path = run / LOCK_FILE
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            got = f"{run} ({error.strerror})"
            raise argument_error("output_dir", "a folder that can be made", got, "Choose another one.") from error
        self.holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started_at(os.getpid())}
        while (taken_at := _create(self.path, json.dumps(self.holder))) is None:
            found = _read(self.path)
            if found is None:
                time.sleep(0.1)
                continue
            if found and not (steal or _is_over(found)):
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["started"]))
                got = f"{run}, in which process {found['pid']} on {found['host']} trains, started {since}"
                raise argument_error("output_dir", "used by one run at a time", got, _REMEDY)
            # Renaming succeeds in one process only.
            moved = partial_path(self.path)
            if not _move(self.path, moved):
                continue
            if _read(moved) == found:
                moved.unlink()
            else:  # the lock of another process, which has taken the stale one over since it was read here
                os.replace(moved, self.path)
        self.taken_at = taken_at
        """Seconds since the epoch, by the clock of the file system."""

    def release(self) -> None:
        """Remove the lock, unless it was stolen, and the folder if nothing was written into it."""
        if _read(self.path) == self.holder:
            self.path.unlink()
        run = self.path.parent
        if run.is_dir() and {path.name for path in run.iterdir()} <= {OUTPUT_MARKER}:
            (run / OUTPUT_MARKER).unlink(missing_ok=True)
            run.rmdir()


def _create(path: Path, text: str) -> float | None:
    """Create a file with this text, and return the time, or None if it exists."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_ctime
    except FileExistsError:
        return None


def _move(path: Path, target: Path) -> bool:
    """Rename a file, and return whether it existed."""
    try:
        path.rename(target)
    except FileNotFoundError:
        return False
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Return the holder of a lock; None if it was just removed or is being written, nothing if it never was written."""
    try:
        text = path.read_text(encoding="utf-8")
        is_new = time.time() - path.stat().st_mtime < _SECONDS_TO_WRITE
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None if is_new else {}
    return found if isinstance(found, dict) and {"host", "pid", "started"} <= found.keys() else {}


def _is_over(holder: dict[str, Any]) -> bool:
    """Return whether the holder of a lock is this process, or one of this machine that has ended."""
    if holder["host"] != socket.gethostname():
        return False
    started = _started_at(holder["pid"])
    is_gone = started is None or abs(started - holder["started"]) > _CLOCK_TOLERANCE
    return is_gone or holder["pid"] == os.getpid()


def _started_at(pid: int) -> float | None:
    """Return when a process of this machine started, in seconds since the epoch; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
