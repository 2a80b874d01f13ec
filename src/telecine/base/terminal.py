"""Text on the terminal: names and messages may hold escape sequences, which are shown and not sent."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console
from rich.text import Text

from telecine.base.checks import printable


class PlainConsole(Console):
    """Prints text as it is, without rich's markup: paths may hold brackets."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text, or the cell of a table, as rich prints it."""
        return super().render_str(printable(text), **options)


class PrintableFormatter(logging.Formatter):
    """Formats log records, whose messages name files."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return printable(super().format(record))


def escape_logs() -> None:
    """Escape what Python logs to standard error where no handler was set up, as on the command line."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
