"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOTHING = "n/a"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, its first column to the left and figures to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def times(ratio: float) -> str:
    """Return a ratio as a cell."""
    return f"{ratio:.2f} x"
