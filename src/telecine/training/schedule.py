"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from telecine.training.config import OptimizerConfig

FINAL_SHARE = 0.05


def lr_scale(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Return what both learning rates are multiplied by at `step` of `num_steps`, in (0, 1]."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
