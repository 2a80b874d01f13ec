"""A row of the table of faults: what is promised, and how often that was tried and held."""

from __future__ import annotations

import sys
from dataclasses import dataclass

# Exit codes of telecine.
USER_ERROR, INTERRUPTED = 2, 130


@dataclass
class Row:
    """A row of the table."""

    promise: str
    tried: int = 0
    held: int = 0

    def add(self, *, held: bool, what: str) -> None:
        """Count an attempt; print what was tried if the promise failed."""
        self.tried += 1
        self.held += held
        if not held:
            print(f"failed: {self.promise}: {what}", file=sys.stderr, flush=True)

    def cells(self) -> list[str]:
        """Return promise, tried, held, failed."""
        return [self.promise, str(self.tried), str(self.held), str(self.tried - self.held)]
