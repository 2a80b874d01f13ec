"""The time of a run, by the speed of a convolution on the device at hand, and of an update on common cards."""

import math

import torch
from rich.table import Table
from torch import nn
from torch.utils.benchmark import Timer

from telecine.base.checks import argument_error
from telecine.base.devices import free_memory, gigabytes
from telecine.settings import TrainConfig
from telecine.training.planning.update import HALF, TABLES, UpdatePlan, plan_update

# The convolution of the calibration: shape of the input, and the seconds of its repetition.
CALIBRATION_SHAPE = (1, 128, 5, 32, 32)
CALIBRATION_SECONDS = 0.5
CPU = torch.device("cpu")
# Smaller runs on a CPU are not planned, which takes seconds: weights of the autoencoder times pixels of an update. The
# demo has 1e11, the recipe for GPUs 4e13.
SMALLEST_TO_PLAN = 1e12
HOURS_TO_WARN = 24.0
SMALLER = "`--config demo` is sized for a CPU: 9 frames of 64 x 64. `telecine plan` with these settings says what fits"
# Python and the driver, for each operator: 5 to 10 microseconds.
LAUNCH_SECONDS = 7e-6
CARDS: dict[str, dict[str, float]] = TABLES["cards"]


def describe_speed(
    config: TrainConfig, plan: UpdatePlan, without_penalty: UpdatePlan, device: torch.device | None
) -> str:
    """Return the operations of a run's updates, and its time at the measured speed of one layer on a device at hand.

    `plan` is of an update with every term, `without_penalty` of one without the gradient penalty; discriminators count
    from their first step on. Measuring takes about a second. Without a device there is no time.
    """
    flops, without = (sum(each.flops.values()) for each in (plan, without_penalty))
    mean = without + (flops - without) / config.objective.penalty.every
    operations = f"{mean / 1e12:.3g} TFLOP an update."
    if device is None:
        return f"{operations} For the time, run this command where the GPU is."
    num_without = min(config.objective.gan.disc_train_start, config.steps)
    total = config.steps * mean - num_without * (mean - without + without_penalty.discriminator_flops)
    dtype = HALF.get(config.mixed_precision, torch.float32)
    per_second = _measured_flops(device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine's {device.type}"
    measured = f"{name} in {dtype}".replace("torch.", "")
    return (
        f"{operations} Estimate: {mean / per_second:.2g} s an update, {total / per_second / 3600:.2g} h for the run, "
        f"if all of it were as fast as a 3D convolution on {measured}, {per_second / 1e12:.3g} TFLOP/s. "
        "Real updates are slower."
    )


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a 3D convolution and its backward on a device."""
    channels = CALIBRATION_SHAPE[1]
    x = torch.randn(CALIBRATION_SHAPE, device=device, dtype=dtype, requires_grad=True)
    layer = nn.Conv3d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    flops = 3 * 2 * 27 * channels * x.numel()
    update = "layer(x).sum().backward(); float(x.grad[0, 0, 0, 0, 0])"  # the last waits for the device
    timer = Timer(update, globals={"layer": layer, "x": x}, num_threads=torch.get_num_threads())
    return float(flops / timer.blocked_autorange(min_run_time=CALIBRATION_SECONDS).mean)


def describe_on_cpu(config: TrainConfig, model: nn.Module, *, num_processes: int) -> str | None:
    """Return a line about the memory and the time of a run on the CPU, or None for a small one.

    Both are planned for an update with every term, at the speed of a convolution; the processes share the memory.
    """
    clip = max(math.prod(bucket.shape) for bucket in config.clips.train_buckets)
    pixels = config.clips_per_pass * config.gradient_accumulation_steps * clip
    if pixels * sum(weight.numel() for weight in model.parameters()) < SMALLEST_TO_PLAN:
        return None
    plan = plan_update(config, device_type="cpu")
    memory = free_memory(CPU) // num_processes
    if plan.peak > memory:
        got = f"{gigabytes(memory)}, and an update needs {gigabytes(plan.peak)} by its plan"
        raise argument_error("memory", "enough for an update on the CPU", got, f"{SMALLER}.")
    seconds = sum(plan.flops.values()) / _measured_flops(CPU, torch.float32)
    hours = seconds * config.steps / 3600
    time_of_run = f"{hours:.2g} hours" if hours <= HOURS_TO_WARN else f"{hours / 24:,.0f} days"
    text = f"on this CPU an update needs {gigabytes(plan.peak)} and about {seconds:.2g} s, the run {time_of_run}"
    return f"warning: {text}. {SMALLER}." if hours > HOURS_TO_WARN else text


def _seconds_on(card: str, plan: UpdatePlan, *, is_half: bool) -> dict[str, float]:
    """Return the least seconds of an update: for launches, arithmetic and memory alone, and of all with overlap."""
    rates = CARDS[card]
    peak = 1e12 * rates["bf16" if is_half else "tf32"]
    arithmetic = {part: flops / peak for part, flops in plan.flops.items()}
    memory = {part: moved / (1e12 * rates["memory"]) for part, moved in plan.moved.items()}
    launches = sum(plan.operators.values()) * LAUNCH_SECONDS
    kernels = sum(max(arithmetic.get(part, 0.0), memory.get(part, 0.0)) for part in arithmetic | memory)
    return {
        "launches": launches,
        "arithmetic": sum(arithmetic.values()),
        "memory": sum(memory.values()),
        "update": max(launches, kernels),
    }


def table_of_cards(plan: UpdatePlan, *, is_half: bool) -> Table:
    """Return a table of the least milliseconds of an update on each card, and of what bounds it."""
    title = f"{sum(plan.operators.values())} operators; least milliseconds of an update, an estimate from peak rates"
    table = Table("card", "launches", "arithmetic", "memory", "update", "bound by", title=title)
    for card in CARDS:
        seconds = _seconds_on(card, plan, is_half=is_half)
        bounds = {name: seconds[name] for name in ("launches", "arithmetic", "memory")}
        table.add_row(card, *(f"{1000 * each:.3g}" for each in seconds.values()), max(bounds, key=bounds.__getitem__))
    return table
