"""What fits into a memory: the largest batch and the longest clip, with and without the switches that save memory."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from telecine.autoencoders import VideoAutoencoder
from telecine.base.checks import TrainingError, argument_error
from telecine.base.devices import free_memory, gigabytes, pick_device
from telecine.base.terminal import with_progress
from telecine.settings import TrainConfig
from telecine.training.distributed import all_gather, fsdp_blocks
from telecine.training.plan import (
    AUTOENCODER,
    AVERAGE,
    DATA,
    FROZEN,
    GRADIENTS,
    HOST_COPY,
    LOSSES,
    OPTIMIZER,
    PARAMETERS,
    PERCEPTUAL,
    DeviceType,
    UpdatePlan,
    fake_autoencoder,
    plan_update,
)
from telecine.training.speed import Speed, speed_of

# The rest is for what a plan does not see: workspaces of kernels, fragmentation, the context of a GPU.
USED_FRACTION = 0.9
# The switches that save memory, by their dotted names. What fits is listed with each added to those before it.
SWITCHES: Mapping[str, Any] = {
    "model_gradient_checkpointing": True,
    "objective.gradient_checkpointing": True,
    "mixed_precision": "bf16",
}
AS_CONFIGURED = "as configured"
SMALLER = "a smaller --batch_size, or smaller clips"
SHARDING = f"--sharding fsdp2 with more processes, --trainable.weights lora, {SMALLER}"
# What helps if a part is the largest.
REMEDIES = {
    AUTOENCODER: f"--model_gradient_checkpointing true, --mixed_precision bf16, {SMALLER}",
    PERCEPTUAL: f"fewer --objective.perceptual.num_frames, {SMALLER}",
    DATA: SMALLER,
    LOSSES: SMALLER,
    FROZEN: f"--objective.perceptual.net alex, {SMALLER}",
    **dict.fromkeys((PARAMETERS, GRADIENTS, OPTIMIZER, AVERAGE, HOST_COPY), SHARDING),
}
DISCRIMINATOR_REMEDY = (
    f"--discriminator.video patch, --objective.gradient_checkpointing true, a smaller --discriminator.dim, {SMALLER}"
)
# Stop searching for the largest batch when the next step adds less than this fraction.
TOLERANCE = 0.02


def device_type_of(device: torch.device) -> DeviceType:
    """Return which of the kinds of devices that a plan knows is the nearest."""
    return "cpu" if device.type == "cpu" else "cuda"


@dataclass(frozen=True)
class Need:
    """What one configuration needs for any number of clips, from the plan of one update.

    The peak is the largest of several moments, each of which is linear in the number of clips. So a line through the
    planned peak and a bound at 0 clips is never below the peak: what it says that fits, fits.
    """

    plan: UpdatePlan
    batch_size: int
    saved: int = 0
    """Bytes that are saved whatever the number of clips, below 0 for more."""

    def of(self, batch_size: int) -> int:
        """Return the bytes that an update with this many clips needs at most."""
        at_zero = self._at_zero(more=batch_size >= self.batch_size)
        return round(at_zero + (self.plan.peak - self.saved - at_zero) * batch_size / self.batch_size)

    def largest_batch(self, memory: int) -> int:
        """Return how many clips fit into this many bytes."""
        peak = self.plan.peak - self.saved
        at_zero = self._at_zero(more=memory >= peak)
        return max((memory - at_zero) * self.batch_size // max(peak - at_zero, 1), 0)

    def _at_zero(self, *, more: bool) -> int:
        """Return a bound of all moments at 0 clips: from below for more clips than planned, from above for fewer."""
        at_zero = self.plan.between if more else min(self.plan.without_clips, self.plan.peak)
        return at_zero - self.saved


@dataclass(frozen=True)
class Length:
    """How the memory that one clip needs grows with its frames, from the plans of two lengths."""

    num_frames: int
    """The configured length."""
    shortest: int
    step: int
    """The model reproduces `shortest + k * step` frames."""
    per_frame: float
    """Bytes that one more frame needs, relative to what a clip of the configured length needs."""

    def longest(self, need: Need, memory: int) -> int:
        """Return about how many frames of one clip fit, 0 if not even the shortest clip does."""
        room = memory - need.of(1)
        if self.per_frame == 0:
            return self.num_frames if room >= 0 else 0
        frames = self.num_frames + room / (self.per_frame * clip_bytes(need))
        return self.shortest + int(frames - self.shortest) // self.step * self.step if frames >= self.shortest else 0


def clip_bytes(need: Need) -> int:
    """Return how much of what one clip needs depends on the clip."""
    return max(need.of(1) - need.plan.between + need.saved, 1)


def lengths_of(config: TrainConfig, model: VideoAutoencoder) -> tuple[int, int, int]:
    """Return the frames of the shortest clip, those from one length to the next, and another length to plan.

    The other length is about half of the configured one, or longer if that is the shortest.
    """
    clips = config.clips
    shortest = model.covering_clip(1, clips.height, clips.width)[0]
    step = model.covering_clip(shortest + 1, clips.height, clips.width)[0] - shortest
    half = shortest + (clips.num_frames - shortest) // step // 2 * step
    return shortest, step, half if half < clips.num_frames else half + step


@dataclass(frozen=True)
class Fit:
    """What fits with some switches."""

    title: str
    batch_size: int
    """Clips of the configured size in each process; 0 if not one fits."""
    num_frames: int
    """About the frames of the longest clip of the configured height and width, one at a time; 0 if none fits."""
    one_clip: int
    """Bytes that an update with one clip needs at most."""


def configurations(config: TrainConfig, model: VideoAutoencoder) -> dict[tuple[str, int], TrainConfig]:
    """Return what to plan, by its title and the frames of its clips.

    These are the settings as configured, and with each switch that is not set added to those before it. Where memory
    grows with the frames in another way than before, there are clips of another length, too.
    """
    num_frames = config.clips.num_frames
    rows, growing = {AS_CONFIGURED: config}, [AS_CONFIGURED]
    for name, value in SWITCHES.items():
        if setting(config, name) != value:
            rows[f"and --{name} {value}".lower()] = config = with_setting(config, name, value)
    chunk = model.smallest_temporal_chunk
    if chunk is not None and config.temporal_chunk is None:
        growing.append(title := f"and --temporal_chunk {chunk}")
        rows[title] = replace(config, temporal_chunk=chunk)
    found = {(title, num_frames): row for title, row in rows.items()}
    if num_frames > 1:
        _, _, other = lengths_of(config, model)
        for title in growing:
            clips = replace(rows[title].clips, num_frames=other, buckets=())
            found[title, other] = replace(rows[title], clips=clips)
    return found


def plan_updates(configs: Sequence[TrainConfig], device: DeviceType) -> list[UpdatePlan]:
    """Plan an update of each configuration; on Linux, in a process for each processor.

    The first is planned alone: the processes inherit what PyTorch then remembers of operators and shapes.
    """
    plan = functools.partial(plan_from_shapes, device=device)
    show = functools.partial(with_progress, description="planning updates", total=len(configs))
    if sys.platform != "linux" or len(configs) == 1:
        return list(show(map(plan, configs)))
    first, *others = configs
    done = plan(first)
    num_processes = min(len(os.sched_getaffinity(0)), len(others))
    fork = multiprocessing.get_context("fork")
    # PyTorch's threads do not survive a fork.
    with ProcessPoolExecutor(num_processes, fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        plans = chain([done], pool.map(plan, others))  # forks, which must be before a thread draws the bar
        return list(show(plans))


def plan_from_shapes(config: TrainConfig, *, device: DeviceType) -> UpdatePlan:
    """Plan an update of the autoencoder that the settings name."""
    return plan_update(config, fake_autoencoder(config), device_type=device)


def what_fits(
    config: TrainConfig,
    model: VideoAutoencoder,
    plans: Mapping[tuple[str, int], UpdatePlan],
    *,
    memory: int,
    num_processes: int,
) -> list[Fit]:
    """Return what fits in each of the configurations, and in the last one sharded.

    Args:
        config: The settings.
        model: See `fake_autoencoder`.
        plans: Those of `configurations`.
        memory: Bytes of a device, of which `USED_FRACTION` is used.
        num_processes: Over how many processes sharding distributes the autoencoder.
    """
    usable = int(memory * USED_FRACTION)
    num_frames = config.clips.num_frames
    shortest, step, other = lengths_of(config, model)
    length = Length(num_frames, shortest, step, per_frame=0.0)
    needs = {title: Need(plan, config.clips_per_pass) for (title, size), plan in plans.items() if size == num_frames}
    saved = saved_by_sharding(model, num_processes)
    needs[f"and --sharding fsdp2, {num_processes} processes"] = replace(list(needs.values())[-1], saved=saved)
    fits = []
    for title, need in needs.items():
        if (title, other) in plans:
            shorter = Need(plans[title, other], need.batch_size)
            per_frame = (need.of(1) - shorter.of(1)) / (num_frames - other)
            length = replace(length, per_frame=per_frame / clip_bytes(need))
        fits.append(Fit(title, need.largest_batch(usable), length.longest(need, usable), need.of(1)))
    return fits


def setting(config: Any, name: str) -> Any:
    """Return the setting of a dotted name."""
    return functools.reduce(getattr, name.split("."), config)


def with_setting(config: Any, name: str, value: Any) -> Any:
    """Return the settings with the one of a dotted name changed."""
    group, _, rest = name.partition(".")
    return replace(config, **{group: with_setting(getattr(config, group), rest, value) if rest else value})


def saved_by_processes(config: TrainConfig, model: nn.Module, num_processes: int) -> int:
    """Return the bytes that several processes save; below 0 without sharding, as DDP copies the gradients."""
    if num_processes == 1:
        return 0
    if config.sharding != "none":
        return saved_by_sharding(model, num_processes)
    return -bytes_of(weight for weight in model.parameters() if weight.requires_grad)


def saved_by_sharding(model: nn.Module, num_processes: int) -> int:
    """Return the bytes that sharding over so many processes saves, an estimate.

    A process holds its share of the weights, of two optimizer states for each, and of their average, and gathers the
    weights of two blocks at a time, beside the gradients of one.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    sharded = 4 * bytes_of(weights) + bytes_of(frozen)
    largest = max((bytes_of(block.parameters()) for block in fsdp_blocks(model)), default=0)
    return round(sharded * (1 - 1 / num_processes)) - 3 * largest


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Plan:
    """What `telecine plan` prints."""

    title: str
    update: UpdatePlan
    speed: Speed
    memory: int
    fits: list[Fit]


def make_plan(config: TrainConfig, memory: int | None, num_processes: int) -> Plan:
    """Plan a run; nothing is trained.

    Args:
        config: The settings. With a given memory and `device` "auto", the plan is for a GPU.
        memory: Bytes of the device to plan for; None for what is free on the device at hand.
        num_processes: Over how many processes sharding is planned.

    Raises:
        ValueError: A setting is wrong, or not even one clip fits with any of the switches.
    """
    at_hand = pick_device("auto" if memory is not None else config.device)
    if memory is None:
        memory, device = free_memory(at_hand), device_type_of(at_hand)
    else:
        device = "cpu" if config.device == "cpu" else "cuda"
    config = replace(config, batch_size=1) if config.batch_size == "auto" else config
    model = fake_autoencoder(config)
    to_plan = configurations(config, model)
    is_lazy = config.objective.penalty.every > 1
    others = [with_setting(config, "objective.grad_penalty_loss_weight", 0.0)] if is_lazy else []
    found = plan_updates([*to_plan.values(), *others], device)
    update, without_penalty = found[0], found[-1 if is_lazy else 0]
    speed = speed_of(config, update, without_penalty, at_hand)
    fits = what_fits(config, model, dict(zip(to_plan, found, strict=False)), memory=memory, num_processes=num_processes)
    if not any(fit.batch_size for fit in fits):
        smallest = min(fits, key=lambda fit: fit.one_clip)
        need = gigabytes(smallest.one_clip / USED_FRACTION)
        got = f"{gigabytes(memory)}, and one clip needs {need} with every switch that saves memory"
        raise argument_error("memory", "enough for one clip", got, advice(update))
    clips = config.clips
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    title = f"{config.clips_per_pass} x {clips.num_frames} x {clips.height} x {clips.width}, {precision}"
    return Plan(title, update, speed, memory, fits)


def with_batch_size(config: TrainConfig, accelerator: Accelerator) -> TrainConfig:
    """Return the settings with the largest batch size that fits, the same on every process.

    Raises:
        ValueError: Not one clip fits.
    """
    device = accelerator.device
    share = accelerator.num_processes if device.type == "cpu" else 1  # of the memory of this machine
    free = torch.tensor(free_memory(device) // share, device=device)
    memory = min(int(each) for each in all_gather(free))
    found = [0]
    if accelerator.is_main_process:
        found = [largest_batch(config, memory, device_type_of(device), num_processes=accelerator.num_processes)]
    broadcast_object_list(found)
    return replace(config, batch_size=found[0])


def largest_batch(config: TrainConfig, memory: int, device: DeviceType, *, num_processes: int = 1) -> int:
    """Return how many clips fit into this many bytes, of which `USED_FRACTION` is used.

    Raises:
        ValueError: Not one clip fits; the message says what would.
    """
    usable = int(memory * USED_FRACTION)
    model = fake_autoencoder(config)
    saved = saved_by_processes(config, model, num_processes)
    planned, found = 0, 1
    while found > planned * (1 + TOLERANCE):
        planned = found
        need = Need(plan_update(replace(config, batch_size=planned), model, device_type=device), planned, saved)
        found = need.largest_batch(usable)
        if found == 0:
            raise nothing_fits(config, need, memory)
    return found


def nothing_fits(config: TrainConfig, need: Need, memory: int) -> Exception:
    """Return the error for a memory in which not one clip fits."""
    smallest = gigabytes(need.of(1) / USED_FRACTION)
    got = f"{gigabytes(memory)}, and one clip needs {smallest}"
    return argument_error("memory", "enough for one clip", got, advice(need.plan))


def out_of_memory(config: TrainConfig, step: int, *, is_own: bool) -> TrainingError:
    """Return the error for a device that is out of memory: which part is the largest, and what helps.

    Args:
        config: The settings of the run.
        step: The updates done.
        is_own: Whether the autoencoder is a custom module, which cannot be planned.
    """
    if is_own:
        return TrainingError(f"out of memory at step {step}. What helps: {SMALLER}.")
    text = f"out of memory at step {step} with a batch size of {config.batch_size}."
    try:
        plan = plan_update(config, fake_autoencoder(config), device_type="cpu" if config.device == "cpu" else "cuda")
    except (ValueError, OSError, RuntimeError) as error:  # such as a model that was moved since the run began
        return TrainingError(f"{text} What helps: {SMALLER}. An update cannot be planned: {error}")
    return TrainingError(f"{text} {advice(plan)} `telecine plan` with the same settings shows what fits.")


def advice(plan: UpdatePlan) -> str:
    """Return which part of an update is the largest, and what helps."""
    part, size = max(plan.at_peak.items(), key=lambda item: item[1])
    remedy = REMEDIES.get(part, DISCRIMINATOR_REMEDY)
    whole = f"{gigabytes(size)} of {gigabytes(plan.peak)}"
    return f"The largest part of an update is by its plan: {part}, {whole}. What helps: {remedy}."
