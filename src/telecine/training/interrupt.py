"""Signals such as that of Ctrl-C end a run after the current update, with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from telecine.base.checks import Interrupted
from telecine.data.worker_process import STOP_SIGNALS
from telecine.ops.ranks import num_ranks

# Slurm signals every process of a job's step, and torchrun passes its signal on to the processes that it started: each
# gets two. A repetition within these seconds is the same request, except for Ctrl-C, which a person repeats.
REPETITION_SECONDS = 5.0


class StopRequest:
    """Whether the run should stop after the current update."""

    is_set = False


@contextmanager
def stop_on_signal(
    *, acknowledge: bool = True, at_once: Interrupted | KeyboardInterrupt | None = None
) -> Iterator[StopRequest]:
    """Yield a `StopRequest` that the first of `STOP_SIGNALS` sets.

    A second signal of the same number acts as it would outside of this context: most end the process.
    Slurm and torchrun send one signal twice: within `REPETITION_SECONDS` it counts once, unless it is that of Ctrl-C.

    Python handles signals in the main thread only; in other threads this does nothing.

    Args:
        acknowledge: Whether to write a line to standard error after the first signal.
        at_once: An error that the first signal raises, for a block that has nothing to save.

    Raises:
        Interrupted: `at_once`, at the first signal.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and previous[hangup] == signal.SIG_IGN:  # as below `nohup`
        del previous[hangup]

    first_times: dict[int, float] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first_time = first_times.setdefault(number, now)
        is_second = now - first_time > REPETITION_SECONDS
        if at_once is not None or number == signal.SIGINT or is_second:
            signal.signal(number, previous[signal.Signals(number)])
        if at_once is not None:
            raise at_once
        if is_second:
            signal.raise_signal(number)
            return
        if acknowledge and not request.is_set:
            _acknowledge()
        request.is_set = True

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _acknowledge() -> None:
    # A launcher also sends the signal if a process has died, without which the others can save nothing.
    saving = "saving" if num_ranks() == 1 else "saving if all processes still run"
    text = f"\nstopping after this update or validation clip, and {saving}; again to stop now\n"
    try:
        # Works also while the program is writing to standard error.
        os.write(2, text.encode())
    except OSError:  # the terminal is closed: what would be printed there, such as progress, must not end the run
        for output in (1, 2):
            if not os.path.isfile(output):
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
