"""A progress bar for the slow parts of preparing data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def with_progress(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Iterate over `items`, with a bar on standard error that vanishes at the end; without one off a terminal."""
    console = Console(stderr=True)
    return iter(track(items, description, console=console, transient=True, disable=not console.is_terminal))
