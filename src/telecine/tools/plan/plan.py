"""The memory of a training run by part, its operations, and the largest batch that fits with each switch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from telecine.base.checks import ArgumentError, argument_error, check_count, check_type
from telecine.base.devices import free_memory, in_gib, parse_memory, pick_device
from telecine.base.terminal import with_progress
from telecine.models import VideoAutoencoder
from telecine.models.context_parallel import most_processes
from telecine.objective.loss import VideoAutoencoderLoss
from telecine.settings import TrainConfig
from telecine.training.memory import (
    estimate_sharding_saving,
    fake_autoencoder,
    fake_objective,
    plan_update,
)
from telecine.training.memory_limits import USED_FRACTION
from telecine.training.update_memory import HOST_COPY, UpdateMemory

# Groups of processes that are planned to share each clip.
_CONTEXT_SIZES = (2, 4)


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits with some settings."""

    title: str
    """The settings."""
    batch_size: int
    """The most clips, or 0."""
    one_clip: int
    """Bytes that an update with one clip needs at most."""


@dataclass(frozen=True)
class PlannedUpdate:
    """An update with some settings."""

    title: str
    config: TrainConfig
    update: UpdateMemory


@dataclass(frozen=True)
class Plan:
    """The memory of an update as configured, and what fits `memory` bytes with switches that save memory."""

    title: str
    update: UpdateMemory
    advice: str
    """What makes the largest part smaller."""
    mean_flops: float
    """Of an update, on average: a penalty may be computed at some steps only."""
    memory: int
    largest_batches: list[LargestBatch]

    def print_to(self, console: Console) -> None:
        """Print the plan as two tables."""
        update = self.update
        console.print(_table_of_parts(update, f"memory of a process, {self.title}"))
        if HOST_COPY not in update.resident_by_part:
            host = f"memory of the first process' host: {in_gib(update.checkpoint)} for the {HOST_COPY}"
            console.print(host, soft_wrap=True)
        console.print(f"{self.mean_flops / 1e12:.3g} TFLOP an update", soft_wrap=True)
        if update.peak > self.memory * USED_FRACTION:
            console.print(
                "With these settings an update does not fit. What does:",
                style="bold",
                soft_wrap=True,
            )
        usable = f"{in_gib(self.memory)}, of which {USED_FRACTION:.0%} are used"
        table = Table(
            Column("settings", overflow="fold"),
            "largest batch",
            "one clip needs",
            title=f"fits {usable}",
        )
        for largest in self.largest_batches:
            size = str(largest.batch_size or "none")
            table.add_row(largest.title, size, in_gib(largest.one_clip))
        console.print(table)
        console.print(self.advice, soft_wrap=True)


def _table_of_parts(update: UpdateMemory, title: str) -> Table:
    table = Table("part", "resident", "at the peak", "at most", "TFLOP", title=title)
    for part, largest in sorted(update.largest_by_part.items(), key=lambda item: -item[1]):
        resident = update.resident_by_part.get(part, 0)
        at_peak = update.peak_by_part.get(part, 0)
        flops = update.flops_by_part.get(part, 0)
        table.add_row(
            part,
            in_gib(resident) if resident else "",
            in_gib(at_peak) if at_peak else "",
            in_gib(largest),
            f"{flops / 1e12:.3g}" if flops else "",
        )
    if update.saved_by_sharding:
        saved = in_gib(-update.saved_by_sharding)
        table.add_row("saved by sharding", saved, saved, "", "")
    table.add_row("all", in_gib(update.resident), in_gib(update.peak), "", "", style="bold")
    return table


def plan(config: TrainConfig, memory: int | str | None = None, num_processes: int = 8) -> Plan:
    """Plan a run; nothing is trained.

    Args:
        config: The settings. A batch size of "auto" is planned as 1.
        memory: Bytes of the device, or a text such as "80GiB"; by default what is free on the device at hand. With it
            and the device "auto", the plan is for a GPU.
        num_processes: How many processes share the weights, with sharding, and at most share a clip.

    Raises:
        ValueError: The model does not fit the clips, or not even one clip fits the memory.
    """
    check_type(
        "config", config, TrainConfig, 'Use `read_config("demo")`, or another recipe or file.'
    )
    check_count("num_processes", num_processes)
    if isinstance(memory, str):
        memory = parse_memory(memory)
    device_type: str = config.device
    if memory is None:
        device = pick_device(config.device)
        device_type = device.type
        memory = free_memory(device)
    if config.batch_size == "auto":
        config = replace(config, batch_size=1)
    model = fake_autoencoder(config)
    plans = _plan_updates(config, model, device_type, num_processes)
    as_configured = plans[0].update
    usable = int(memory * USED_FRACTION)
    largest_batches = []
    for planned in plans:
        update = planned.update
        largest_batches.append(
            LargestBatch(planned.title, update.largest_batch(usable), update.memory_for(1))
        )
    advice = as_configured.describe_largest_part(config)
    if not any(largest.batch_size for largest in largest_batches):
        smallest = min(plans, key=lambda planned: planned.update.memory_for(1))
        needed = in_gib(smallest.update.memory_for(1) / USED_FRACTION)
        got = f"{in_gib(memory)}, and one clip needs {needed} with every switch that saves memory"
        remedy = smallest.update.describe_largest_part(replace(smallest.config, batch_size=1))
        raise argument_error("memory", "enough for one clip", got, remedy)
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    title = f"{config.clips_per_pass} x {config.clips.num_frames} x {config.clips.height} x {config.clips.width}"
    title = f"{title}, {precision}"
    if config.context_parallel > 1:
        title = f"{title}, each clip on {config.context_parallel} processes"
    if config.sharding != "none":
        title = f"{title}, sharded over {num_processes} processes"
    mean_flops = _mean_flops(config, as_configured, device_type)
    return Plan(title, as_configured, advice, mean_flops, memory, largest_batches)


def _plan_updates(
    config: TrainConfig, model: VideoAutoencoder, device_type: str, num_processes: int
) -> list[PlannedUpdate]:
    """Return the update as configured, then with more and more switches, sharded, and with shared clips."""
    saved = estimate_sharding_saving(model, num_processes)
    is_sharded = config.sharding != "none"
    switched = list(_with_switches(config, model))
    shared = list(_with_shared_clips(config, model, num_processes))
    plans: list[PlannedUpdate] = []
    # With and without checkpoints. Discriminators with a spectral norm take as long to build as an update to plan.
    objectives: dict[bool, VideoAutoencoderLoss] = {}
    for title, planned in with_progress(switched + shared, "planning updates"):
        has_checkpoints = planned.objective.gradient_checkpointing
        if has_checkpoints not in objectives:
            objectives[has_checkpoints] = fake_objective(planned)
        update = plan_update(planned, None, objectives[has_checkpoints], device_type=device_type)
        if is_sharded:
            update = replace(update, saved_by_sharding=saved)
        plans.append(PlannedUpdate(title, planned, update))
    last = plans[len(switched) - 1]
    sharded = _changed(last.config, {"sharding": "fsdp2"})
    if not is_sharded and sharded is not None:
        title = f"and --sharding fsdp2, {num_processes} processes"
        update = replace(last.update, saved_by_sharding=saved)
        plans.insert(len(switched), PlannedUpdate(title, sharded, update))
    return plans


def _with_switches(
    config: TrainConfig, model: VideoAutoencoder
) -> Iterator[tuple[str, TrainConfig]]:
    """Yield the settings to plan with a title each: as configured, then with one more switch that saves memory.

    Switches that the rules of the settings refuse, such as those with compilation, are left out.
    """
    yield "as configured", config
    switches: dict[str, dict[str, Any]] = {}
    if not config.model_gradient_checkpointing:
        switches["--model_gradient_checkpointing true"] = {"model_gradient_checkpointing": True}
    if not config.objective.gradient_checkpointing:
        objective = replace(config.objective, gradient_checkpointing=True)
        switches["--objective.gradient_checkpointing true"] = {"objective": objective}
    if config.mixed_precision == "no":
        switches["--mixed_precision bf16"] = {"mixed_precision": "bf16"}
    chunk = model.smallest_temporal_chunk
    if chunk is not None and config.temporal_chunk is None:
        switches[f"--temporal_chunk {chunk}"] = {"temporal_chunk": chunk}
    for title, changes in switches.items():
        switched = _changed(config, changes)
        if switched is not None:
            config = switched
            yield f"and {title}", config


def _changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig | None:
    """Return settings with changes; None if the rules of the settings refuse these together."""
    try:
        return replace(config, **changes)
    except ArgumentError:
        return None


def _with_shared_clips(
    config: TrainConfig, model: VideoAutoencoder, num_processes: int
) -> Iterator[tuple[str, TrainConfig]]:
    """Yield the settings with clips on more processes and no other switch, with a title each; none if refused."""
    height = min(bucket.height for bucket in config.clips.train_buckets)
    most = 1
    if num_processes > 1:
        most = min(num_processes, most_processes(model, height))
    for size in _CONTEXT_SIZES:
        if config.context_parallel < size <= most:
            shared = _changed(config, {"context_parallel": size})
            if shared is not None:
                yield f"as configured, --context_parallel {size}", shared


def _mean_flops(config: TrainConfig, update: UpdateMemory, device_type: str) -> float:
    """Return the operations of a mean update: `update` has the gradient penalty, which may not be in every one."""
    every = config.objective.penalty.every
    if every == 1 or config.objective.grad_penalty_loss_weight == 0:
        return update.flops
    objective = replace(config.objective, grad_penalty_loss_weight=0.0)
    without_penalty = plan_update(replace(config, objective=objective), device_type=device_type)
    return without_penalty.flops + (update.flops - without_penalty.flops) / every
