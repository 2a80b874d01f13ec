"""A lock on the folder of a run: one process at a time trains in it."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from telecine.base.checks import argument_error
from telecine.base.files import OUTPUT_MARKER, mark_output
from telecine.data.find import check_output

LOCK_FILE = ".lock"
REMEDY = "Use another --output_dir, or wait. If that process is gone, add --steal_lock."
# A lock without contents is older than this only if its process ended before it wrote them.
SECONDS_TO_WRITE = 10.0
# Another process can have the number of one that has ended, but not its start; clocks are adjusted by less than this.
CLOCK_TOLERANCE = 5.0


def take_folder(run: Path, data: str | None, *, steal: bool = False) -> RunLock:
    """Lock the folder of a run, which is marked as output: it may be inside the data.

    Raises:
        ValueError: Another process holds the lock, or the folder is that of the data.
    """
    check_output("output_dir", data, run)
    lock = RunLock(run, steal=steal)
    mark_output(run)
    return lock


class RunLock:
    """The lock on a folder, from its creation to `release`.

    A file that names its holder, created exclusively: that also works on file systems without `flock`. The lock of a
    process of this machine that has ended, or of this process itself, is taken over.

    Args:
        run: The run's folder, which is created.
        steal: Take over the lock of any process, for example of a machine that is gone.

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
        self.holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started_at(os.getpid())}
        while not create(self.path, json.dumps(self.holder)):
            found = read(self.path)
            if found is None:
                time.sleep(0.1)
                continue
            if found and not (steal or is_over(found)):
                raise argument_error("output_dir", "used by one run at a time", f"{run}, {describe(found)}", REMEDY)
            # Renaming succeeds in one process only.
            moved = self.path.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}.partial")
            if not move(self.path, moved):
                continue
            if read(moved) == found:
                moved.unlink()
            else:  # the lock of another process, which has taken the stale one over since it was read here
                os.replace(moved, self.path)

    def release(self) -> None:
        """Remove the lock, unless it was stolen, and the folder if nothing was written into it."""
        if read(self.path) == self.holder:
            self.path.unlink()
        run = self.path.parent
        if run.is_dir() and {path.name for path in run.iterdir()} <= {OUTPUT_MARKER}:
            (run / OUTPUT_MARKER).unlink(missing_ok=True)
            run.rmdir()


def create(path: Path, text: str) -> bool:
    """Create a file with this text, and return whether that succeeded: not if it exists."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def move(path: Path, target: Path) -> bool:
    """Rename a file, and return whether it existed."""
    try:
        path.rename(target)
    except FileNotFoundError:
        return False
    return True


def read(path: Path) -> dict[str, Any] | None:
    """Return the holder of a lock; None if it was just removed or is being written, nothing if it never was written."""
    try:
        text = path.read_text(encoding="utf-8")
        is_new = time.time() - path.stat().st_mtime < SECONDS_TO_WRITE
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None if is_new else {}
    return found if isinstance(found, dict) and {"host", "pid", "started"} <= found.keys() else {}


def is_over(holder: dict[str, Any]) -> bool:
    """Return whether the holder of a lock is this process, or one of this machine that has ended."""
    if holder["host"] != socket.gethostname():
        return False
    started = started_at(holder["pid"])
    is_gone = started is None or abs(started - holder["started"]) > CLOCK_TOLERANCE
    return is_gone or holder["pid"] == os.getpid()


def started_at(pid: int) -> float | None:
    """Return when a process of this machine started, in seconds since the epoch; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def describe(holder: dict[str, Any]) -> str:
    """Return who holds a lock, in words."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["started"]))
    return f"in which process {holder['pid']} on {holder['host']} trains, started {since}"
