"""Progress of a loop: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from telecine.base.checks import argument_error

Item = TypeVar("Item")

# Without a terminal, a line of progress is printed this often.
SECONDS_BETWEEN_LINES = 30.0


def with_progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with progress on standard error: a bar that disappears at the end, or lines if it is not a terminal.

    Args:
        items: The items to iterate over.
        description: Text before the bar.
        total: Number of items; may be left out if `items` has a length.

    Raises:
        TypeError: There is neither.
    """
    if total is None:
        if not isinstance(items, Sized):
            remedy = "Pass the number of items."
            raise argument_error("total", "given for items without a length", "nothing", remedy, TypeError)
        total = len(items)
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, description, total=total, console=console, transient=True)
    else:
        yield from _with_lines(items, description, total, console)


def _with_lines(items: Iterable[Item], description: str, total: int, console: Console) -> Iterator[Item]:
    start = last = time.monotonic()
    for num_done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            left = (now - start) / num_done * (total - num_done)
            console.out(f"{description} {num_done}/{total}  {left / 60:.1f} min left", highlight=False)
