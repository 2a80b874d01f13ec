"""What fits the memory of a device: the largest batch, a run on the CPU, and the error when memory runs out."""

import math
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn

from telecine.base.checks import TrainingError, argument_error
from telecine.base.devices import free_memory, in_gib
from telecine.settings import TrainConfig
from telecine.training.distributed import all_gather, on_first_process
from telecine.training.memory import (
    estimate_sharding_saving,
    fake_autoencoder,
    fake_objective,
    plan_update,
)

# The rest is for memory that a plan does not see: workspaces of kernels, fragmentation, the context of a GPU.
USED_FRACTION = 0.9
# With more clips at a time a CPU is no faster, and each update takes longer.
MAX_ON_CPU = 8
# Stop searching for the largest batch when the next step adds less than this fraction.
_TOLERANCE = 0.02
# Smaller runs on a CPU are not planned, which takes seconds: weights of the autoencoder times pixels of an update. The
# demo has 1e11, the recipe for GPUs 4e13.
_SMALLEST_TO_PLAN = 1e12
# With more, an update takes several seconds on any CPU.
_MAX_FLOPS_ON_CPU = 1e12
_SMALLER = "a smaller --batch_size, smaller clips"
_DEMO_IS_SMALLER = (
    "`--config demo` is sized for a CPU: 9 frames of 64 x 64. `telecine plan` shows what fits."
)


def largest_batch(config: TrainConfig, accelerator: Accelerator) -> int:
    """Return the largest batch size that fits in every process, at most `MAX_ON_CPU` on a CPU. All processes call this.

    Raises:
        ValueError: Not even one clip fits.
    """
    device = accelerator.device
    num_processes = accelerator.num_processes
    memory = free_memory(device)
    if device.type == "cpu":  # which the processes of this machine share
        memory //= num_processes
    memory = min(int(free) for free in all_gather(torch.tensor(memory, device=device)))

    def search() -> int:
        model = fake_autoencoder(config)
        objective = fake_objective(config)
        saved = 0
        if config.sharding != "none":
            saved = estimate_sharding_saving(model, num_processes)
        elif num_processes > 1:  # DDP copies the gradients
            saved = -sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
        planned = 0
        fitting = 1
        while fitting > planned * (1 + _TOLERANCE):
            planned = fitting
            with_size = replace(config, batch_size=planned)
            plan = plan_update(with_size, model, objective, device_type=device.type)
            plan = replace(plan, saved_by_sharding=saved)
            fitting = plan.largest_batch(int(memory * USED_FRACTION))
            if device.type == "cpu":
                fitting = min(fitting, MAX_ON_CPU)
            if fitting == 0:
                needed = in_gib(plan.memory_for(1) / USED_FRACTION)
                contract = f"at least the {needed} that one clip needs"
                remedy = plan.describe_largest_part(replace(config, batch_size=1))
                raise argument_error("the free memory", contract, in_gib(memory), remedy)
        return fitting

    return on_first_process(search, accelerator)


def describe_on_cpu(config: TrainConfig, model: nn.Module, *, num_processes: int) -> str | None:
    """Return a line about the memory and the operations of an update on the CPU, None for a small run.

    Args:
        config: The settings of the run.
        model: The autoencoder.
        num_processes: The number of processes on this machine.

    Raises:
        ValueError: An update does not fit the memory, which the processes share.
    """
    clip = max(math.prod(bucket.shape) for bucket in config.clips.train_buckets)
    pixels = config.clips_per_pass * config.gradient_accumulation_steps * clip
    num_weights = sum(weight.numel() for weight in model.parameters())
    if pixels * num_weights < _SMALLEST_TO_PLAN:
        return None
    plan = plan_update(config, device_type="cpu")
    memory = free_memory(torch.device("cpu")) // num_processes
    if plan.peak > memory:
        contract = f"at least the {in_gib(plan.peak)} that an update needs by its plan"
        raise argument_error("the free memory", contract, in_gib(memory), _DEMO_IS_SMALLER)
    text = f"on this CPU an update needs {in_gib(plan.peak)} and {plan.flops / 1e12:.3g} TFLOP"
    if plan.flops > _MAX_FLOPS_ON_CPU:
        return f"warning: {text}: these settings are sized for a GPU. {_DEMO_IS_SMALLER}"
    return text


def out_of_memory(config: TrainConfig, when: str, *, is_custom: bool) -> TrainingError:
    """Return the error for a device that is out of memory, with the largest part of an update and what helps.

    Args:
        config: The settings of the run.
        when: The moment, such as "at step 3".
        is_custom: Whether a module of the user's is trained, whose memory cannot be planned.
    """
    if is_custom or config.batch_size == "auto":
        return TrainingError(f"out of memory {when}. What helps: {_SMALLER}.")
    text = f"out of memory {when} with a batch size of {config.batch_size}."
    try:
        plan = plan_update(config, device_type=config.device)
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:
        # For example a model that was moved since the run began.
        return TrainingError(f"{text} What helps: {_SMALLER}. An update cannot be planned: {error}")
    part = plan.describe_largest_part(config)
    return TrainingError(f"{text} {part} `telecine plan` with these settings shows what fits.")
