"""What a large run would need on a CPU, said before it starts."""

from __future__ import annotations

import torch
from torch import nn

from telecine.base.checks import argument_error
from telecine.base.devices import free_memory, gigabytes
from telecine.settings import TrainConfig
from telecine.training.plan import fake_autoencoder, plan_update
from telecine.training.speed import measured_flops

CPU = torch.device("cpu")
# Smaller runs are not planned, which takes seconds: weights of the autoencoder times pixels of an update. The demo has
# 1e11, the recipe for GPUs 4e13.
SMALLEST_TO_PLAN = 1e12
HOURS_TO_WARN = 24.0
SMALLER = "`--config demo` is sized for a CPU: 9 frames of 64 x 64. `telecine plan` with these settings says what fits"


def describe_on_cpu(config: TrainConfig, model: nn.Module, *, num_processes: int) -> str | None:
    """Return a line about the memory and the time that a run needs on the CPU, or None for a small one.

    Both are those of the plan of an update in which every term is on, at the speed of a convolution on this machine.

    Args:
        config: The settings.
        model: The autoencoder that they name.
        num_processes: How many processes share the memory of this machine.

    Raises:
        ValueError: An update does not fit in memory.
    """
    weights = sum(weight.numel() for weight in model.parameters())
    if weights * pixels_of_update(config) < SMALLEST_TO_PLAN:
        return None
    plan = plan_update(config, fake_autoencoder(config), device_type="cpu")
    memory = free_memory(CPU) // num_processes
    if plan.peak > memory:
        got = f"{gigabytes(memory)}, and an update needs {gigabytes(plan.peak)} by its plan"
        raise argument_error("memory", "enough for an update on the CPU", got, f"{SMALLER}.")
    seconds = sum(plan.flops.values()) / measured_flops(CPU, torch.float32)
    hours = seconds * config.steps / 3600
    text = f"on this CPU an update needs {gigabytes(plan.peak)} and about {seconds:.2g} s, the run {spell(hours)}"
    return f"warning: {text}. {SMALLER}." if hours > HOURS_TO_WARN else text


def pixels_of_update(config: TrainConfig) -> int:
    """Return the pixels of all frames of an update, in each process."""
    frame = max(bucket.num_frames * bucket.height * bucket.width for bucket in config.clips.train_buckets)
    return config.clips_per_pass * config.gradient_accumulation_steps * frame


def spell(hours: float) -> str:
    """Return a time in hours or days."""
    return f"{hours:.2g} hours" if hours <= HOURS_TO_WARN else f"{hours / 24:,.0f} days"
