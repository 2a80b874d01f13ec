"""Output on the terminal and in notebooks: escaped text, durations, and the progress of a loop."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from telecine.base.checks import count, printable

Item = TypeVar("Item")
# Without a terminal, a line of progress is printed this often.
SECONDS_BETWEEN_LINES = 30.0
# Characters of the bar in a notebook.
_BAR_LENGTH = 30


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record))
        if not record.name.startswith("telecine"):
            return text
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        return prefix + text.replace("\n", "\\n")


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
        """Change what Python logs to standard error without a handler.

        Escape sequences are shown, since records name files, and a warning of telecine says that it is one.
        """
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(_PrintableFormatter())


# What commands print to.
console = PlainConsole()


@contextmanager
def quiet_logger(name: str, least_level: int = logging.CRITICAL + 1) -> Iterator[None]:
    """Let a logger and those below it log nothing below a level, by default nothing at all."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(max(logger.getEffectiveLevel(), least_level))
    try:
        yield
    finally:
        logger.setLevel(level)


def describe_duration(seconds: float) -> str:
    """Return a time as "3 days 4 h", "2 h 5 min", "5 min 20 s", "20 s" or, below ten seconds, "0.29 s"."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [count(days, "day"), f"{hours} h", f"{minutes} min", f"{rest} s"]
    numbers = [days, hours, minutes, rest]
    largest = next(index for index, number in enumerate(numbers) if number > 0)
    if largest == 3 or numbers[largest + 1] == 0:
        return parts[largest]
    return f"{parts[largest]} {parts[largest + 1]}"


class NotebookBar:
    """A bar of progress below the cell of a notebook. It is a line of text, which needs no widgets."""

    def __init__(self, total: int) -> None:
        from IPython.display import display  # a notebook has it

        self.total = total
        self._last_change = 0.0
        self._display = display({"text/plain": ""}, raw=True, display_id=True)

    def show(self, num_done: int, text: str) -> None:
        """Show how much is done and a text, at most twice a second and at the end."""
        now = time.monotonic()
        if now - self._last_change < 0.5 and num_done < self.total:
            return
        self._last_change = now
        length = _BAR_LENGTH * num_done // self.total
        bar = "\u2588" * length + "\u2591" * (_BAR_LENGTH - length)
        line = f"{bar} {num_done}/{self.total}  {text}"
        self._display.update({"text/plain": printable(line)}, raw=True)


def with_progress(
    items: Iterable[Item], description: str, total: int | None = None, *, is_shown: bool = True
) -> Iterator[Item]:
    """Iterate with progress: a bar on standard error that disappears at the end, in a notebook a bar, else lines.

    Args:
        items: What is iterated over.
        description: The text beside the progress.
        total: The number of items, by default their length.
        is_shown: False: without progress. Of several processes, one shows it.
    """
    if not is_shown:
        yield from items
        return
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    progress_console = Console(stderr=True)
    if progress_console.is_terminal:
        # Takes time that help and errors of the command line must not spend.
        from rich.progress import track

        yield from track(items, description, total=total, console=progress_console, transient=True)
        return
    bar = NotebookBar(total) if progress_console.is_jupyter else None
    start = time.monotonic()
    last = start
    for num_done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        left = describe_duration((now - start) / num_done * (total - num_done))
        if bar is not None:
            bar.show(num_done, f"{description}  {left} left")
        elif now - last > SECONDS_BETWEEN_LINES:
            last = now
            line = f"{description} {num_done}/{total}  {left} left"
            progress_console.out(line, highlight=False)
