"""A lock on the folder of a run: one process at a time trains in it."""

import logging
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout
from typing_extensions import Self

from telecine.base.checks import argument_error
from telecine.base.files import OUTPUT_MARKER, read_json, write_json

LOCK_FILE = ".lock"
# Names the process that holds the lock.
OWNER_FILE = ".lock.json"
logger = logging.getLogger(__name__)


class RunLock:
    """The lock on the folder of a run, held from `acquire` to `release`.

    The kernel frees the lock (`flock`) when the process ends. On a file system without `flock`, filelock replaces it by
    a file: it takes over the file of a process of this machine that has ended, but not one of another machine.

    Args:
        run: The folder of the run.
        steal: Take the lock from another process. Only for a process that has ended, as when its machine is gone.

    Attributes:
        taken_at: When the lock was acquired, by the clock of the file system; None before.
    """

    def __init__(self, run: Path, *, steal: bool = False) -> None:
        self.path = run / LOCK_FILE
        self._steal = steal
        self.taken_at: float | None = None
        self._owner_file = run / OWNER_FILE
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        self._lock = FileLock(self.path, timeout=0, thread_local=False)

    def acquire(self) -> Self:
        """Take the lock, and return this object. The folder is created if needed.

        Raises:
            ValueError: Another process holds the lock, or the folder cannot be created.
        """
        run = self.path.parent
        try:
            self._is_new = not run.exists()
            run.mkdir(parents=True, exist_ok=True)
            if self._steal:
                self.path.unlink(missing_ok=True)
            self._lock.acquire()
            write_json(self._owner_file, self._owner)
            self.taken_at = self._owner_file.stat().st_ctime
        except Timeout:
            remedy = "Use another --output_dir, or wait. If that process is gone, add --steal_lock."
            got = f"{run}, in which {self._describe_owner()}"
            raise argument_error("output_dir", "used by one run at a time", got, remedy) from None
        except OSError as error:
            self._lock.release()
            mount = next(folder for folder in run.absolute().parents if folder.is_mount())
            got = f"{run} ({error.strerror}; its file system is mounted at {mount})"
            raise argument_error(
                "output_dir", "a folder that can be made", got, "Choose another one."
            ) from error
        return self

    def _describe_owner(self) -> str:
        try:
            owner = read_json(self._owner_file)
            return f"process {owner['pid']} on {owner['host']} trains, started {owner['started']}"
        except (OSError, ValueError, KeyError):  # the owner is just writing it, or it is damaged
            return "another process trains"

    def release(self) -> None:
        """Release the lock, if it is held, and remove the folder if it is new and nothing was written into it."""
        if self.taken_at is None:
            return
        run = self.path.parent
        try:
            if self._owner_file.exists() and read_json(self._owner_file) == self._owner:
                # It was not stolen.
                self._owner_file.unlink()
                self.path.unlink(missing_ok=True)
            if run.is_dir() and {path.name for path in run.iterdir()} <= {OUTPUT_MARKER}:
                (run / OUTPUT_MARKER).unlink(missing_ok=True)
                if self._is_new:
                    run.rmdir()
        except (OSError, ValueError) as error:  # do not hide the error that has ended the run
            logger.warning("cannot remove the lock of %s: %s", run, error)
        self._lock.release()
