"""What a run needs: the batch and the clip that fit a memory, with the switches that save it, and the time."""

import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch import nn
from torch.utils.benchmark import Timer

from telecine.base.checks import TrainingError, argument_error
from telecine.base.devices import free_memory, gigabytes, pick_device
from telecine.base.terminal import with_progress
from telecine.models import VideoAutoencoder
from telecine.settings import ClipConfig, ObjectiveConfig, TrainConfig
from telecine.training.distributed import all_gather, fsdp_blocks, on_first_process
from telecine.training.planning.update import HALF, HOST_COPY, TABLES, UpdatePlan, fake_autoencoder, plan_update

T = TypeVar("T")
# The rest is for memory that a plan does not see: workspaces of kernels, fragmentation, the context of a GPU.
_USED_FRACTION = 0.9
_SWITCHES: Mapping[str, Any] = TABLES["switches"]
_SMALLER = ", ".join(TABLES["remedies"]["clips"])
_AS_CONFIGURED = "as configured"
# With more clips at a time a CPU is no faster, and each update takes longer.
MAX_ON_CPU = 8
# Stop searching for the largest batch when the next step adds less than this fraction.
_TOLERANCE = 0.02
# The convolution of the calibration: shape of the input, and the seconds of its repetition.
_CALIBRATION_SHAPE = (1, 128, 5, 32, 32)
_CALIBRATION_SECONDS = 0.5
_CPU = torch.device("cpu")
# Smaller runs on a CPU are not planned, which takes seconds: weights of the autoencoder times pixels of an update. The
# demo has 1e11, the recipe for GPUs 4e13.
_SMALLEST_TO_PLAN = 1e12
_HOURS_TO_WARN = 24.0
_DEMO_IS_SMALLER = "`--config demo` is sized for a CPU: 9 frames of 64 x 64. `telecine plan` says what fits"
# Python and the driver, for each operator: 5 to 10 microseconds.
_LAUNCH_SECONDS = 7e-6
_CARDS: dict[str, dict[str, float]] = TABLES["cards"]


class _LargestBatch(NamedTuple):
    """The clips of the configured size and, about, the frames of a single one that fit with some switches, or 0."""

    title: str
    batch_size: int
    num_frames: int | None  # None for clips of one frame, beside which no other length is planned
    one_clip: int  # bytes that an update with one clip needs at most


@dataclass(frozen=True)
class _Plan:
    title: str
    update: UpdatePlan
    speed: str  # about the time of a run
    memory: int
    largest: list[_LargestBatch]
    is_half: bool  # whether autocast computes in half precision

    def print_to(self, console: Console) -> None:
        update = self.update
        table = Table("part", "resident", "at the peak", "at most", title=f"memory of a process, {self.title}")
        for part, most in sorted(update.largest.items(), key=lambda item: -item[1]):
            cells = (update.held.get(part, 0), update.at_peak.get(part, 0), most)
            table.add_row(part, *(gigabytes(size) if size else "" for size in cells))
        if update.saved:
            table.add_row("saved by sharding", *[gigabytes(-update.saved)] * 2, "")
        peak = update.peak - update.saved
        table.add_row("all", gigabytes(update.resident - update.saved), gigabytes(peak), "", style="bold")
        console.print(table)
        if HOST_COPY not in update.held:
            host = f"memory of the first process' host: {gigabytes(update.checkpoint)} for the {HOST_COPY}"
            console.print(host, soft_wrap=True)
        console.print(self.speed, soft_wrap=True)
        if HOST_COPY not in update.held:
            console.print(_table_of_cards(update, is_half=self.is_half))
        if peak > self.memory * _USED_FRACTION:
            console.print("With these settings an update does not fit. What does:", style="bold", soft_wrap=True)
        usable = f"{gigabytes(self.memory)}, of which {_USED_FRACTION:.0%} are used"
        # Texts, as the console of the commands shows the line breaks of plain strings.
        titles = map(Text, ("largest\nbatch", "most\nframes", "one clip\nneeds"))
        fits = Table(
            Column("settings", overflow="fold"), *map(Column, titles), title=f"what fits {usable}; frames are estimates"
        )
        for row in self.largest:
            counts = (str(row.batch_size or "none"), "-" if row.num_frames is None else str(row.num_frames or "none"))
            fits.add_row(row.title, *counts, gigabytes(row.one_clip))
        console.print(fits)
        console.print(update.describe_largest_part(), soft_wrap=True)


def make_plan(config: TrainConfig, memory: int | None, num_processes: int) -> _Plan:
    """Plan a run for `memory` bytes, by default the free ones of the device at hand; nothing is trained.

    With a given memory and `device` "auto", the plan is for a GPU. With sharding `num_processes` share the weights.
    """
    at_hand = pick_device("auto" if memory is not None else config.device)
    device_type = at_hand.type if memory is None else config.device
    memory = free_memory(at_hand) if memory is None else memory
    config = replace(config, batch_size=1) if config.batch_size == "auto" else config
    model = fake_autoencoder(config)
    to_plan = _configurations(config, model)
    clips, unpenalised = config.clips, _with_setting(config, "objective.grad_penalty_loss_weight", 0.0)
    others = [unpenalised] if config.objective.penalty.every > 1 and unpenalised != config else []
    plan = partial(plan_update, device_type=device_type)
    plans = _plan_in_processes(plan, [*to_plan.values(), *others])
    saved, is_sharded = _saved_by_sharding(model, num_processes), config.sharding != "none"
    if is_sharded:
        plans = [replace(each, saved=saved) for each in plans]
    update, without_penalty = plans[0], plans[-1 if others else 0]
    measured = None if at_hand.type == "cpu" != device_type else at_hand
    dtype = HALF.get(config.mixed_precision, torch.float32)
    speed = _describe_speed(config.objective, config.steps, update, without_penalty, measured, dtype)
    by_title = dict(zip(to_plan, plans, strict=False))
    usable = int(memory * _USED_FRACTION)
    if not is_sharded:
        last = [each for (_, num_frames), each in by_title.items() if num_frames == clips.num_frames][-1]
        sharded = f"and --sharding fsdp2, {num_processes} processes", clips.num_frames
        by_title[sharded] = replace(last, saved=saved)
    largest = list(_what_fits(by_title, clips.num_frames, _lengths(model, clips), usable))
    if not any(each.batch_size for each in largest):
        smallest = gigabytes(min(each.one_clip for each in largest) / _USED_FRACTION)
        got = f"{gigabytes(memory)}, and one clip needs {smallest} with every switch that saves memory"
        raise argument_error("memory", "enough for one clip", got, update.describe_largest_part())
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    shards = f", sharded over {num_processes} processes" if is_sharded else ""
    title = f"{config.clips_per_pass} x {clips.num_frames} x {clips.height} x {clips.width}, {precision}{shards}"
    return _Plan(title, update, speed, memory, largest, is_half=config.mixed_precision != "no")


def _configurations(config: TrainConfig, model: VideoAutoencoder) -> dict[tuple[str, int], TrainConfig]:
    """Return the settings to plan, by title and number of frames: as configured, then with one more switch each.

    Clips of another length are added where the growth of memory with the frames changes.
    """
    rows, growing = {_AS_CONFIGURED: config}, [_AS_CONFIGURED]
    for name, value in _SWITCHES.items():
        if attrgetter(name)(config) != value:
            rows[f"and --{name} {value}".lower()] = config = _with_setting(config, name, value)
    chunk = model.smallest_temporal_chunk
    if chunk is not None and config.temporal_chunk is None:
        growing.append(title := f"and --temporal_chunk {chunk}")
        rows[title] = replace(config, temporal_chunk=chunk)
    found = {(title, config.clips.num_frames): row for title, row in rows.items()}
    if config.clips.num_frames > 1:
        clips = replace(config.clips, num_frames=_lengths(model, config.clips)[-1], buckets=())
        found |= {(title, clips.num_frames): replace(rows[title], clips=clips) for title in growing}
    return found


def _with_setting(config: Any, name: str, value: Any) -> Any:
    group, _, rest = name.partition(".")
    return replace(config, **{group: _with_setting(getattr(config, group), rest, value) if rest else value})


def _plan_in_processes(plan: Callable[[T], UpdatePlan], configs: Sequence[T]) -> list[UpdatePlan]:
    show = partial(with_progress, description="planning updates", total=len(configs))
    if sys.platform != "linux" or len(configs) == 1:
        return list(show(map(plan, configs)))
    first, *others = configs
    done = plan(first)  # alone: the processes inherit what PyTorch then remembers of operators and shapes
    num_processes = min(len(os.sched_getaffinity(0)), len(others))
    fork = multiprocessing.get_context("fork")
    # PyTorch's threads do not survive a fork.
    with ProcessPoolExecutor(num_processes, fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        plans = chain([done], pool.map(plan, others))  # forks, which must be before a thread draws the bar
        return list(show(plans))


def _lengths(model: VideoAutoencoder, clips: ClipConfig) -> tuple[int, int, int]:
    """Return the fewest frames of a clip, the step to more, and another length to plan, about half of the clips'."""
    shortest = model.covering_clip(1, clips.height, clips.width)[0]
    step = model.covering_clip(shortest + 1, clips.height, clips.width)[0] - shortest
    half = shortest + (clips.num_frames - shortest) // step // 2 * step
    return shortest, step, half if half < clips.num_frames else half + step


def _what_fits(
    plans: Mapping[tuple[str, int], UpdatePlan], num_frames: int, lengths: tuple[int, int, int], usable: int
) -> Iterable[_LargestBatch]:
    """Yield what fits in `usable` bytes of each title; `plans` are by title and number of frames."""
    (shortest, step, other), growth = lengths, 0.0
    for title, plan in ((title, plan) for (title, frames), plan in plans.items() if frames == num_frames):
        one_clip = plan.memory_for(1)
        of_clip = max(one_clip - plan.resident + plan.saved, 1)  # the part that depends on the clip
        if (title, other) in plans:  # bytes that one more frame needs, relative to those of a clip
            growth = (one_clip - plans[title, other].memory_for(1)) / (num_frames - other) / of_clip
        room = usable - one_clip
        more = room / (growth * of_clip) if growth else 0 if room >= 0 else -math.inf
        frames = shortest + int(num_frames + more - shortest) // step * step if num_frames + more >= shortest else 0
        yield _LargestBatch(title, plan.largest_batch(usable), frames if num_frames > 1 else None, one_clip)


def _saved_by_sharding(model: nn.Module, num_processes: int) -> int:
    # A process holds its share of the weights, of two optimizer states for each, and of their average. It gathers the
    # weights of two blocks at a time, beside the gradients of one.
    sharded = sum((4 if weight.requires_grad else 1) * weight.nbytes for weight in model.parameters())
    largest = max((sum(weight.nbytes for weight in block.parameters()) for block in fsdp_blocks(model)), default=0)
    return round(sharded * (1 - 1 / num_processes)) - 3 * largest


def largest_batch(config: TrainConfig, accelerator: Accelerator) -> int:
    """Return the largest batch size, at most `MAX_ON_CPU` on a CPU, that fits in every process, which all call this."""
    device, num_processes = accelerator.device, accelerator.num_processes
    is_gpu = device.type != "cpu"
    share = 1 if is_gpu else num_processes  # of the memory of this machine
    memory = min(int(free) for free in all_gather(torch.tensor(free_memory(device) // share, device=device)))

    def search() -> int:
        model, saved = fake_autoencoder(config), 0
        if config.sharding != "none":
            saved = _saved_by_sharding(model, num_processes)
        elif num_processes > 1:  # DDP copies the gradients
            saved = -sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
        planned, found = 0, 1
        while found > planned * (1 + _TOLERANCE):
            planned = found
            plan = plan_update(replace(config, batch_size=planned), model, device_type=device.type)
            plan = replace(plan, saved=saved)
            found = min(plan.largest_batch(int(memory * _USED_FRACTION)), sys.maxsize if is_gpu else MAX_ON_CPU)
            if found == 0:
                got = f"{gigabytes(memory)}, and one clip needs {gigabytes(plan.memory_for(1) / _USED_FRACTION)}"
                raise argument_error("memory", "enough for one clip", got, plan.describe_largest_part())
        return found

    return on_first_process(search, accelerator)


def out_of_memory(config: TrainConfig, when: str, *, is_own: bool) -> TrainingError:
    """Return the error for a device that is out of memory, with the largest part of an update and its remedies."""
    if is_own or config.batch_size == "auto":  # what cannot be planned
        return TrainingError(f"out of memory {when}. What helps: {_SMALLER}.")
    text = f"out of memory {when} with a batch size of {config.batch_size}."
    try:
        plan = plan_update(config, device_type=config.device)
    except (ValueError, OSError, RuntimeError) as error:  # such as a model that was moved since the run began
        return TrainingError(f"{text} What helps: {_SMALLER}. An update cannot be planned: {error}")
    return TrainingError(f"{text} {plan.describe_largest_part()} `telecine plan` with these settings shows what fits.")


def _describe_speed(
    objective: ObjectiveConfig,
    num_steps: int,
    plan: UpdatePlan,
    without_penalty: UpdatePlan,
    device: torch.device | None,
    dtype: torch.dtype,
) -> str:
    """Return the operations of a run's updates, and its time at the measured speed of one layer on a device at hand.

    `plan` is of an update with every term, `without_penalty` of one without the gradient penalty; discriminators count
    from their first step on. Measuring takes about a second. Without a device there is no time.
    """
    flops, without = (sum(each.flops.values()) for each in (plan, without_penalty))
    mean = without + (flops - without) / objective.penalty.every
    operations = f"{mean / 1e12:.3g} TFLOP an update."
    if device is None:
        return f"{operations} For the time, run this command where the GPU is."
    num_without = min(objective.gan.disc_train_start, num_steps)
    of_discriminators = sum(flops for part, flops in without_penalty.flops.items() if "discriminator" in part)
    total = num_steps * mean - num_without * (mean - without + of_discriminators)
    per_second = _measured_flops(device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine's {device.type}"
    measured = f"{name} in {dtype}".replace("torch.", "")
    times = f"{_without_exponent(mean / per_second)} s an update, {_without_exponent(total / per_second / 3600)} h"
    return (
        f"{operations} Estimate: {times} for the run, if all of it were as fast as a 3D convolution on {measured}, "
        f"{per_second / 1e12:.3g} TFLOP/s. Real updates are slower."
    )


def _without_exponent(value: float) -> str:
    return "less than 0.001" if value < 0.001 else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a 3D convolution and its backward on a device."""
    channels = _CALIBRATION_SHAPE[1]
    x = torch.randn(_CALIBRATION_SHAPE, device=device, dtype=dtype, requires_grad=True)
    layer = nn.Conv3d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    flops = 3 * 2 * 27 * channels * x.numel()
    update = "layer(x).sum().backward(); float(x.grad[0, 0, 0, 0, 0])"  # the last waits for the device
    timer = Timer(update, globals={"layer": layer, "x": x}, num_threads=torch.get_num_threads())
    return float(flops / timer.blocked_autorange(min_run_time=_CALIBRATION_SECONDS).mean)


def describe_on_cpu(config: TrainConfig, model: nn.Module, *, num_processes: int) -> str | None:
    """Return a line about the memory and the time of a run on the CPU, or None for a small one.

    Both are planned for an update with every term, at the speed of a convolution; the processes share the memory.
    """
    clip = max(math.prod(bucket.shape) for bucket in config.clips.train_buckets)
    pixels = config.clips_per_pass * config.gradient_accumulation_steps * clip
    if pixels * sum(weight.numel() for weight in model.parameters()) < _SMALLEST_TO_PLAN:
        return None
    plan = plan_update(config, device_type="cpu")
    memory = free_memory(_CPU) // num_processes
    if plan.peak > memory:
        got = f"{gigabytes(memory)}, and an update needs {gigabytes(plan.peak)} by its plan"
        raise argument_error("memory", "enough for an update on the CPU", got, f"{_DEMO_IS_SMALLER}.")
    seconds = sum(plan.flops.values()) / _measured_flops(_CPU, torch.float32)
    hours = seconds * config.steps / 3600
    time_of_run = f"{_without_exponent(hours)} hours" if hours <= _HOURS_TO_WARN else f"{hours / 24:,.0f} days"
    time_of_update = _without_exponent(seconds)
    text = f"on this CPU an update needs {gigabytes(plan.peak)} and about {time_of_update} s, the run {time_of_run}"
    return f"warning: {text}. {_DEMO_IS_SMALLER}." if hours > _HOURS_TO_WARN else text


def _seconds_on(card: str, plan: UpdatePlan, *, is_half: bool) -> dict[str, float]:
    """Return the least seconds of an update: for launches, arithmetic and memory alone, and of all with overlap."""
    rates = _CARDS[card]
    peak = 1e12 * rates["bf16" if is_half else "tf32"]
    arithmetic = {part: flops / peak for part, flops in plan.flops.items()}
    memory = {part: moved / (1e12 * rates["memory"]) for part, moved in plan.moved.items()}
    launches = sum(plan.operators.values()) * _LAUNCH_SECONDS
    kernels = sum(max(arithmetic.get(part, 0.0), memory.get(part, 0.0)) for part in arithmetic | memory)
    return {
        "launches": launches,
        "arithmetic": sum(arithmetic.values()),
        "memory": sum(memory.values()),
        "update": max(launches, kernels),
    }


def _table_of_cards(plan: UpdatePlan, *, is_half: bool) -> Table:
    title = f"{sum(plan.operators.values())} operators; least milliseconds of an update, an estimate from peak rates"
    table = Table("card", "launches", "arithmetic", "memory", "update", "bound by", title=title)
    for card in _CARDS:
        seconds = _seconds_on(card, plan, is_half=is_half)
        bounds = {name: seconds[name] for name in ("launches", "arithmetic", "memory")}
        table.add_row(card, *(f"{1000 * each:.3g}" for each in seconds.values()), max(bounds, key=bounds.__getitem__))
    return table
