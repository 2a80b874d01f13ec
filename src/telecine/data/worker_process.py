"""Worker processes: what one changes before it reads data, and a function that is mapped over them."""

import ctypes
import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from telecine.base.terminal import with_progress
from telecine.data.errors import DataError

logger = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")

# Signals that end a run with a checkpoint: Ctrl-C, a scheduler's end, a closed terminal, Slurm's `--signal=USR1`.
# Windows has only the first two.
_STOP_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_NAMES if hasattr(signal, name))
# From Linux' <sys/prctl.h>: the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1
_KILL_SECONDS = 5.0  # a killed process ends at once, unless the kernel waits for a disk
_SENT_ERRORS = (
    ValueError,
    OSError,
    ImportError,
)  # of data, of the system, and of a missing package


def _address_without_file(family: str) -> str:
    """Return a new address of a Unix socket that is no file: Linux' abstract ones end with the socket."""
    return f"\0telecine-{uuid.uuid4().hex}"


def initialise_worker(parent: int, worker: int) -> None:
    """Let a worker ignore `STOP_SIGNALS`, at which training saves a checkpoint, and end with the training process.

    It also leaves the memory of the objects of that process shared.

    PyTorch's workers look for their parent every five seconds, and never while they are stopped.

    Args:
        parent: The process id of the training process.
        worker: The number of the worker.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # a fork shares the objects of its parent, until the garbage collector looks through them
    if sys.platform == "linux":
        # Python's sockets between processes have files in the temporary folder, which a killed worker would leave.
        multiprocessing.connection.arbitrary_address = _address_without_file  # type: ignore[attr-defined]
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # which has ended already
            os._exit(1)


def num_processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_processes(
    function: Callable[[A], R], arguments: Sequence[A], num_processes: int, description: str
) -> Iterator[R]:
    """Yield what a function returns for each argument, in order. Worker processes call it, and end with this generator.

    Each of them has a pipe of its own. A pool of the standard library has one for all: it waits without end for the
    rest of a result if the process that sends it is killed.

    Args:
        function: The function. Where processes are not forked, it is pickled. This process logs what it logs.
        arguments: The arguments.
        num_processes: The number of processes. With 1, this process calls the function.
        description: The text beside the progress.

    Raises:
        DataError: a process was killed.
        Exception: what the function raises for an argument, without its traceback.
    """
    if num_processes == 1:
        yield from map(function, with_progress(arguments, description))
        return
    pending = deque(enumerate(arguments))
    results: dict[int, R] = {}  # that are not yielded yet
    workers: dict[Any, BaseProcess] = {}  # by connection
    try:
        for number in range(num_processes):
            connection, process = _start(function, number)
            workers[connection] = process
            _send_next(pending, connection, process)
        # The thread that draws the progress must not run yet when processes are forked.
        for number in with_progress(range(len(arguments)), description):
            while number not in results:
                ready: list[Any] = wait(list(workers))
                for connection in ready:
                    process = workers[connection]
                    message = _receive(connection, process)
                    if isinstance(message, logging.LogRecord):
                        _log(message)
                        continue
                    _send_next(pending, connection, process)
                    results[message.place] = message.result
            yield results.pop(number)
    finally:
        kill_workers(workers.values())


def kill_workers(workers: Iterable[BaseProcess]) -> None:
    """End worker processes at once, which ignore other signals than SIGKILL."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_KILL_SECONDS)
        if worker.is_alive():
            logger.warning(
                "worker %s cannot be ended: a disk or a device does not answer", worker.pid
            )


def _start(function: Callable[[Any], Any], number: int) -> tuple[Connection, BaseProcess]:
    """Start a process that calls a function, and return the pipe to it."""
    connection, other_end = multiprocessing.Pipe()
    process = multiprocessing.Process(
        target=_call_until_closed, args=(function, other_end, os.getpid(), number), daemon=True
    )
    process.start()
    other_end.close()  # so that the pipe is closed if the process is killed
    return connection, process


def _send_next(
    pending: deque[tuple[int, Any]], connection: Connection, process: BaseProcess
) -> None:
    """Send the first argument that is left, with its place, to a process that waits for one."""
    if pending:
        try:
            connection.send(pending.popleft())
        except ConnectionError as error:
            raise _end_of(process) from error


def _receive(connection: Connection, process: BaseProcess) -> "logging.LogRecord | _Returned":
    """Return what a process sends: something that it logs, or what the function returns; raise what that raises."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionError) as error:
        raise _end_of(process) from error
    if isinstance(message, _SENT_ERRORS):
        raise message
    assert isinstance(message, (logging.LogRecord, _Returned))
    return message


def _log(record: logging.LogRecord) -> None:
    """Log what a process has logged, by the levels of this one: a process that is not forked has none of them."""
    record_logger = logging.getLogger(record.name)
    if record_logger.isEnabledFor(record.levelno):
        record_logger.handle(record)


class _Returned(NamedTuple):
    """What the function of `map_in_processes` returns for an argument."""

    place: int
    """The number of the argument."""
    result: Any


class _SendRecords(logging.Handler):
    """Sends what is logged to the process that started this one, which logs it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record as its text: its arguments need not be picklable."""
        text = {"msg": record.getMessage(), "args": None, "exc_info": None}
        self._connection.send(logging.makeLogRecord({**record.__dict__, **text}))


def _call_until_closed(
    function: Callable[[Any], Any], connection: Connection, parent: int, number: int
) -> None:
    """Call a function with the arguments that a connection sends, and send back what it returns, raises and logs."""
    initialise_worker(parent, number)
    package_logger = logging.getLogger("telecine")
    package_logger.handlers = [_SendRecords(connection)]
    package_logger.propagate = False
    while True:
        try:
            place, argument = connection.recv()
        except EOFError:
            return
        try:
            connection.send(_Returned(place, function(argument)))
        except _SENT_ERRORS as error:
            connection.send(error)


def _end_of(process: BaseProcess) -> DataError:
    process.join(_KILL_SECONDS)
    text = f"A process that reads data has ended with exit code {process.exitcode}."
    remedy = "If it was killed, memory may be short: with `clips.num_workers` 0, there are no such processes."
    return DataError(f"{text} {remedy}")
