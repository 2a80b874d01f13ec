"""How a training run ends early."""

from __future__ import annotations

from pathlib import Path


class TrainingError(RuntimeError):
    """Training cannot go on: it diverged, or the device is out of memory. The last checkpoint is complete."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run can be resumed
    """The run was interrupted by a signal; its checkpoint is written.

    Args:
        saved: Folder of the checkpoint; None before the first update, when there is nothing to save.
    """

    def __init__(self, saved: Path | None) -> None:
        super().__init__(saved)
        self.saved = saved

    def __str__(self) -> str:
        if self.saved is None:
            return "stopped before the first update; run the same command again to start"
        return f"stopped; saved {self.saved}. Run the same command again to resume."
