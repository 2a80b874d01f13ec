"""Work in a thread beside the caller's."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def in_background(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items while a thread computes the next one; an error of the thread is raised here.

    Args:
        items: What is iterated over, in the thread.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1)
    try:
        following: Future[Any] = pool.submit(next, iterator, _END)
        item = following.result()
        while item is not _END:
            following = pool.submit(next, iterator, _END)
            yield item
            item = following.result()
    finally:
        pool.shutdown()
        if isinstance(items, Generator):
            items.close()  # and with it a file that it reads
