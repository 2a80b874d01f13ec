"""Writes the tables of settings in docs/choosing.md from the docstrings of the config classes.

    python docs/settings_tables.py          # rewrites the tables in place
    python docs/settings_tables.py --check  # exits with 1 if a table is out of date

A table stands between the lines `<!-- settings: CLASS prefix -->` and `<!-- end -->`. Its rows are the fields of the
class, but for nested config classes. Their docstrings end with "Source: ..." and "Drawback: ...".
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from telecine import settings
from telecine.base.checks import argument_error
from telecine.settings.listing import settings_of

PAGE = Path(__file__).parent / "choosing.md"
BLOCK = re.compile(r"(<!-- settings: (\w+) (\S*) ?-->\n).*?(<!-- end -->)", re.DOTALL)
HEADER = "| setting | what it does | default | source | how it fails |\n|---|---|---|---|---|\n"


def table(kind: type, prefix: str = "") -> str:
    """Return the table of a config class in Markdown."""
    rows = []
    for item in settings_of(kind):
        if item.is_group or "." in item.name:
            continue  # another group of settings, which has its own table
        what, *others = (
            " ".join(part.split()) for part in re.split(r"\n(?=Source: |Drawback: )", item.text)
        )
        labelled = dict(part.split(": ", 1) for part in others)
        if set(labelled) != {"Source", "Drawback"}:
            contract = 'followed by lines "Source: ..." and "Drawback: ..."'
            got = f"{sorted(labelled)} only"
            raise argument_error(
                f"the docstring of {kind.__name__}.{item.name}", contract, got, "Add them."
            )
        cells = (
            f"`{prefix}{item.name}`",
            what,
            f"`{item.default!r}`",
            labelled["Source"],
            labelled["Drawback"],
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEADER + "".join(rows)


def with_tables(page: str) -> str:
    """Return the page with every table made anew."""

    def block(match: re.Match[str]) -> str:
        start, name, prefix, end = match.groups()
        return start + table(getattr(settings, name), prefix) + end

    return BLOCK.sub(block, page)


def main() -> int:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="Change nothing, exit with 1 if a table is out of date.",
    )
    old = PAGE.read_text(encoding="utf-8")
    new = with_tables(old)
    if parser.parse_args().check:
        return int(old != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
