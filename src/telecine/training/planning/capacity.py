"""The largest batch and the longest clip for a memory, with and without the switches that save memory."""

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
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch import nn

from telecine.autoencoders import VideoAutoencoder
from telecine.base.checks import TrainingError, argument_error
from telecine.base.devices import free_memory, gigabytes, pick_device
from telecine.base.terminal import with_progress
from telecine.settings import ClipConfig, TrainConfig
from telecine.training.distributed import all_gather, fsdp_blocks, on_first_process
from telecine.training.planning.speed import describe_speed, table_of_cards
from telecine.training.planning.update import HOST_COPY, SMALLER, TABLES, UpdatePlan, fake_autoencoder, plan_update

# The rest is for memory that a plan does not see: workspaces of kernels, fragmentation, the context of a GPU.
USED_FRACTION = 0.9
SWITCHES: Mapping[str, Any] = TABLES["switches"]
AS_CONFIGURED = "as configured"
# With more clips at a time a CPU is no faster, and each update takes longer.
MAX_ON_CPU = 8
# Stop searching for the largest batch when the next step adds less than this fraction.
TOLERANCE = 0.02


class _LargestBatch(NamedTuple):
    """The clips of the configured size and, about, the frames of a single one that fit with some switches, or 0."""

    title: str
    batch_size: int
    num_frames: int
    one_clip: int  # bytes that an update with one clip needs at most


@dataclass(frozen=True)
class _Plan:
    """The output of `telecine plan`."""

    title: str
    update: UpdatePlan
    speed: str  # about the time of a run
    memory: int
    largest: list[_LargestBatch]
    is_half: bool  # whether autocast computes in half precision

    def print_to(self, console: Console) -> None:
        """Print the bytes of each part, the time, and the largest batches."""
        update = self.update
        table = Table("part", "resident", "at the peak", "at most", title=f"memory of a process, {self.title}")
        for part, most in sorted(update.largest.items(), key=lambda item: -item[1]):
            cells = (update.held.get(part, 0), update.at_peak.get(part, 0), most)
            table.add_row(part, *(gigabytes(size) if size else "" for size in cells))
        table.add_row("all", gigabytes(update.resident), gigabytes(update.peak), "", style="bold")
        console.print(table)
        if HOST_COPY not in update.held:
            host = f"memory of the first process' host: {gigabytes(update.checkpoint)} for the {HOST_COPY}"
            console.print(host, soft_wrap=True)
        console.print(self.speed, soft_wrap=True)
        if HOST_COPY not in update.held:
            console.print(table_of_cards(update, is_half=self.is_half))
        if update.peak > self.memory * USED_FRACTION:
            console.print("With these settings an update does not fit. What does:", style="bold", soft_wrap=True)
        usable = f"{gigabytes(self.memory)}, of which {USED_FRACTION:.0%} are used"
        # Texts, as the console of the commands shows the line breaks of plain strings.
        titles = map(Text, ("largest\nbatch", "most\nframes", "one clip\nneeds"))
        fits = Table(
            Column("settings", overflow="fold"), *map(Column, titles), title=f"what fits {usable}; frames are estimates"
        )
        for row in self.largest:
            counts = (str(row.batch_size or "none"), str(row.num_frames or "none"))
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
    is_lazy = config.objective.penalty.every > 1 and unpenalised != config
    others = [unpenalised] if is_lazy else []
    plan = partial(plan_update, device_type=device_type)
    plans = _plan_in_processes(plan, [*to_plan.values(), *others])
    update, without_penalty = plans[0], plans[-1 if is_lazy else 0]
    measured = None if at_hand.type == "cpu" != device_type else at_hand
    time = describe_speed(config, update, without_penalty, measured)
    by_title = dict(zip(to_plan, plans, strict=False))
    usable = int(memory * USED_FRACTION)
    last = [each for (_, num_frames), each in by_title.items() if num_frames == clips.num_frames][-1]
    sharded = f"and --sharding fsdp2, {num_processes} processes", clips.num_frames
    by_title[sharded] = replace(last, saved=_saved_by_sharding(model, num_processes))
    largest = list(_what_fits(by_title, clips.num_frames, _lengths(model, clips), usable))
    if not any(each.batch_size for each in largest):
        smallest = gigabytes(min(each.one_clip for each in largest) / USED_FRACTION)
        got = f"{gigabytes(memory)}, and one clip needs {smallest} with every switch that saves memory"
        raise argument_error("memory", "enough for one clip", got, update.describe_largest_part())
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    title = f"{config.clips_per_pass} x {clips.num_frames} x {clips.height} x {clips.width}, {precision}"
    return _Plan(title, update, time, memory, largest, is_half=config.mixed_precision != "no")


def _configurations(config: TrainConfig, model: VideoAutoencoder) -> dict[tuple[str, int], TrainConfig]:
    """Return the settings to plan, by title and number of frames: as configured, then with one more switch each.

    Clips of another length are added where the growth of memory with the frames changes.
    """
    rows, growing = {AS_CONFIGURED: config}, [AS_CONFIGURED]
    for name, value in SWITCHES.items():
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
    """Return the settings with another value at a dotted name."""
    group, _, rest = name.partition(".")
    return replace(config, **{group: _with_setting(getattr(config, group), rest, value) if rest else value})


def _plan_in_processes(plan: Callable[[TrainConfig], UpdatePlan], configs: Sequence[TrainConfig]) -> list[UpdatePlan]:
    """Plan an update of each configuration; on Linux, in a process for each processor."""
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
    """Return the fewest frames of a clip, the step to more, and a second length to plan.

    That is about half of the configured one, or longer if that is the fewest.
    """
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
        yield _LargestBatch(title, plan.largest_batch(usable), frames, one_clip)


def _saved_by_sharding(model: nn.Module, num_processes: int) -> int:
    """Estimate the bytes that sharding over `num_processes` processes saves."""
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
        while found > planned * (1 + TOLERANCE):
            planned = found
            plan = plan_update(replace(config, batch_size=planned), model, device_type=device.type)
            plan = replace(plan, saved=saved)
            found = min(plan.largest_batch(int(memory * USED_FRACTION)), sys.maxsize if is_gpu else MAX_ON_CPU)
            if found == 0:
                got = f"{gigabytes(memory)}, and one clip needs {gigabytes(plan.memory_for(1) / USED_FRACTION)}"
                raise argument_error("memory", "enough for one clip", got, plan.describe_largest_part())
        return found

    return on_first_process(search, accelerator)


def out_of_memory(config: TrainConfig, step: int, *, is_own: bool) -> TrainingError:
    """Return the error for a device that is out of memory, with the largest part of an update and its remedies."""
    if is_own:  # a custom module cannot be planned
        return TrainingError(f"out of memory at step {step}. What helps: {SMALLER}.")
    text = f"out of memory at step {step} with a batch size of {config.batch_size}."
    try:
        plan = plan_update(config, device_type=config.device)
    except (ValueError, OSError, RuntimeError) as error:  # such as a model that was moved since the run began
        return TrainingError(f"{text} What helps: {SMALLER}. An update cannot be planned: {error}")
    again = "`telecine plan` with the same settings shows what fits."
    return TrainingError(f"{text} {plan.describe_largest_part()} {again}")
