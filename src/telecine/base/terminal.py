"""Output on the terminal: escaped text, and the progress of a loop."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from telecine.base.checks import printable

Item = TypeVar("Item")
# Without a terminal, a line of progress is printed this often.
SECONDS_BETWEEN_LINES = 30.0


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record))
        return text.replace("\n", "\\n") if record.name.startswith("telecine") else text


class PlainConsole(Console):
    """Prints text without rich's markup, since paths may hold brackets, and with escape sequences shown."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text, or the cell of a table, as rich prints it. A line break in a name would forge a line."""
        return super().render_str(printable(text).replace("\n", "\\n"), **options)

    def say(self, text: str) -> None:
        """Print a text whose lines the terminal breaks, so that paths can be copied."""
        self.print(text, soft_wrap=True)

    @staticmethod
    def escape_logs() -> None:
        """Show escape sequences in what Python logs to standard error without a handler: records name files."""
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(_PrintableFormatter())


# What commands print to.
console = PlainConsole()


def with_progress(
    items: Iterable[Item], description: str, total: int | None = None
) -> Iterator[Item]:
    """Iterate with progress on standard error: a bar that disappears at the end, or lines if it is not a terminal.

    Args:
        items: What is iterated over.
        description: The text beside the progress.
        total: The number of items, by default their length.
    """
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    progress_console = Console(stderr=True)
    if progress_console.is_terminal:
        from rich.progress import (
            track,
        )  # takes time that help and mistakes on the command line must not spend

        yield from track(items, description, total=total, console=progress_console, transient=True)
        return
    start = time.monotonic()
    last = start
    for num_done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            left = (now - start) / num_done * (total - num_done)
            progress_console.out(
                f"{description} {num_done}/{total}  {left / 60:.1f} min left", highlight=False
            )
