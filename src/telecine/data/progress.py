"""A progress bar for the slow parts of preparing data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items`, with a bar on standard error that vanishes at the end; without one off a terminal.

    Args:
        items: What to iterate over.
        description: What stands before the bar.
        total: How many items there are, where `len` does not tell.
    """
    console = Console(stderr=True)
    return iter(
        track(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)
    )
