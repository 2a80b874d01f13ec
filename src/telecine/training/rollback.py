"""Going back to a checkpoint after a divergence, with lower learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from telecine.settings import OptimizerConfig

# Each time the learning rates are multiplied by this.
LR_FACTOR = 0.5
MAX_ROLLBACKS = 3


class Rollback(NamedTuple):
    """The run went back once."""

    step: int
    """Where it diverged."""
    to: int
    """The step of the checkpoint that it went back to."""
    value: str
    """What was not finite."""

    def describe(self, number: int) -> str:
        """Return what happened, for a warning; `number` counts from 1."""
        lower = f"learning rates times {LR_FACTOR**number:g}"
        return f"`{self.value}` was not finite after step {self.step}; went back to step {self.to}, {lower}"


def lr_factor(rollbacks: Sequence[Rollback]) -> float:
    """Return the factor of both learning rates."""
    return LR_FACTOR ** len(rollbacks)


def remedy(optimizer: OptimizerConfig, step: int | None, rollbacks: Sequence[Rollback]) -> str:
    """Return what to do after a divergence that ends the run.

    Args:
        optimizer: The settings of the run.
        step: That of the newest checkpoint, None without one.
        rollbacks: How often the run went back already.
    """
    settings = f"--optimizer.lr {LR_FACTOR * optimizer.lr:g} --optimizer.disc_lr {LR_FACTOR * optimizer.disc_lr:g}"
    resumes = "it starts again, as it has no checkpoint" if step is None else f"it resumes from step {step}"
    tried = f"It went back {len(rollbacks)} times already. " if rollbacks else ""
    return f"{tried}Run the same command with {settings}: {resumes}."
