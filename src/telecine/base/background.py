"""Work in a thread beside the caller's."""

from collections.abc import Generator, Iterable, Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")
_POLL_SECONDS = 0.1


def in_background(items: Iterable[Item], num_ahead: int = 1) -> Iterator[Item]:
    """Yield items that a thread computes while the caller uses earlier ones; an error of the thread is raised here.

    Args:
        items: What is iterated over, in the thread.
        num_ahead: Largest number of items that wait for the caller.
    """
    results: Queue[tuple[str, Any]] = Queue(num_ahead)
    is_stopped = Event()
    thread = Thread(target=_compute, args=(items, results, is_stopped), daemon=True)
    thread.start()
    try:
        while True:
            kind, value = results.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        is_stopped.set()
        thread.join()


def _compute(items: Iterable[Item], results: Queue[tuple[str, Any]], is_stopped: Event) -> None:
    """Put items, and at last the end or an error, until the caller stops."""
    last: tuple[str, Any] = ("end", None)
    try:
        for item in items:
            _put(results, ("item", item), is_stopped)
            if is_stopped.is_set():
                break
    except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
        last = ("error", error)
    if isinstance(items, Generator):
        items.close()  # and with it a file that it reads
    _put(results, last, is_stopped)


def _put(results: Queue[tuple[str, Any]], result: tuple[str, Any], is_stopped: Event) -> None:
    while not is_stopped.is_set():
        try:
            results.put(result, timeout=_POLL_SECONDS)
            return
        except Full:
            continue
