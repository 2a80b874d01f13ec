"""Signals such as that of Ctrl-C end a run after the current update, with a checkpoint."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from telecine.base.checks import Interrupted
from telecine.data.loader import STOP_SIGNALS

ACKNOWLEDGED = "\nstopping after this update or validation clip, and saving; again to stop now\n"


class StopRequest:
    """Whether the run should stop after the current update."""

    is_set = False


@contextmanager
def stop_on_signal(*, acknowledge: bool = True) -> Iterator[StopRequest]:
    """Turn the first of each of `STOP_SIGNALS` into a `StopRequest`, which standard error acknowledges if asked to."""
    request = StopRequest()

    def set_request() -> None:
        if acknowledge and not request.is_set:
            os.write(2, ACKNOWLEDGED.encode())  # standard error, also while the program is writing to it
        request.is_set = True

    with _on_first_signal(set_request):
        yield request


@contextmanager
def interrupt_on_signal() -> Iterator[None]:
    """Raise `Interrupted` at the first of each of `STOP_SIGNALS`, where there is no checkpoint to save yet."""

    def interrupt() -> None:
        raise Interrupted(None)

    with _on_first_signal(interrupt):
        yield


@contextmanager
def _on_first_signal(react: Callable[[], None]) -> Iterator[None]:
    """Call a function at the first of each of `STOP_SIGNALS`; a second of the same acts as before.

    Python handles signals in the main thread only; in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    hangup = getattr(signal, "SIGHUP", None)  # does not exist on Windows
    if previous.get(hangup) == signal.SIG_IGN:  # as below `nohup`
        del previous[hangup]

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, previous[signal.Signals(number)])
        react()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
