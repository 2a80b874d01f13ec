"""The micro-batches of each update, on the device of a process."""

from __future__ import annotations

from collections.abc import Iterator

from accelerate import Accelerator

from telecine.data import ClipDataset, DataError, ReadingStopped, clip_loader
from telecine.training.config import TrainConfig
from telecine.training.interrupt import StopRequest
from telecine.training.step import MicroBatch


def micro_batches(
    clips: ClipDataset, config: TrainConfig, *, start_step: int, accelerator: Accelerator, stop: StopRequest
) -> Iterator[list[MicroBatch]]:
    """Yield the micro-batches of each remaining step, on this process' device.

    Args:
        clips: The training clips.
        config: The settings.
        start_step: The first step to read.
        accelerator: Of this process.
        stop: Ends the wait for a batch.

    Raises:
        ReadingStopped: `stop` was set while a batch was waited for.
    """
    loader = clip_loader(
        clips,
        batch_size=config.clips_per_pass,
        start_step=start_step,
        num_steps=config.steps,
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
        num_micro_batches=config.gradient_accumulation_steps,
        should_stop=lambda: stop.is_set,
    )
    batches: list[MicroBatch] = []
    for items, batch in zip(loader.sampler, loader, strict=True):
        video = batch["video"].to(accelerator.device, non_blocking=True)
        batches.append(MicroBatch(video, [index for _, index in items]))
        if len(batches) == config.gradient_accumulation_steps:
            yield batches
            batches = []


def read_next(batches: Iterator[list[MicroBatch]]) -> tuple[list[MicroBatch], Exception | None]:
    """Return the next micro-batches, or the error for which they cannot be read; neither if reading was stopped."""
    try:
        return next(batches), None
    except ReadingStopped:
        return [], None
    except (DataError, OSError, RuntimeError) as error:
        return [], error
