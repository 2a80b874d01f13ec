"""What a worker process changes before it reads clips: signals, its end with its parent, and its sockets."""

import ctypes
import multiprocessing.connection
import os
import signal
import sys
import uuid

# Signals that end a run with a checkpoint: Ctrl-C, a scheduler's end, a closed terminal, Slurm's `--signal=USR1`.
# Windows has only the first two.
_STOP_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_NAMES if hasattr(signal, name))
# From Linux' <sys/prctl.h>: the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def _address_without_file(family: str) -> str:
    """Return a new address of a Unix socket that is no file: Linux' abstract ones end with the socket."""
    return f"\0telecine-{uuid.uuid4().hex}"


def initialise_worker(parent: int, worker: int) -> None:
    """Let a worker ignore `STOP_SIGNALS`, at which training saves a checkpoint, and end with the training process.

    PyTorch's workers look for their parent every five seconds, and never while they are stopped.

    Args:
        parent: The process id of the training process.
        worker: The number of the worker.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # Python's sockets between processes have files in the temporary folder, which a killed worker would leave.
        multiprocessing.connection.arbitrary_address = _address_without_file  # type: ignore[attr-defined]
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # which has ended already
            os._exit(1)
