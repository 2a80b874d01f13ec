"""The folder of a run: the names of its files, and how each is written and read. Nothing else opens them."""

from telecine.runs.checkpoints import find_checkpoint
from telecine.runs.manifest import DamagedError
from telecine.runs.run import Run

__all__ = ["DamagedError", "Run", "find_checkpoint"]
