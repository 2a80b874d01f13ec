"""Ctrl-C and SIGTERM end a run after the current update, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - not an error: the run can be resumed
    """The run was interrupted by a signal; its checkpoint is written."""


class StopRequest:
    """Whether the run should stop after the current update."""

    def __init__(self) -> None:
        self.is_set = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a `StopRequest`. A second signal acts at once, as usual.

    Python handles signals in the main thread only: in other threads the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def set_request(number: int, frame: FrameType | None) -> None:
        request.is_set = True
        restore()

    for number in SIGNALS:
        signal.signal(number, set_request)
    try:
        yield request
    finally:
        restore()
