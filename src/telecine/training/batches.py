"""The micro-batches that a process trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from accelerate import Accelerator

from telecine.data import ClipDataset, DataError, ReadingStopped, clip_loader
from telecine.settings import TrainConfig
from telecine.training.latent_cache import LatentCache, names_of
from telecine.training.step import MicroBatch


def read_batches(
    clips: ClipDataset,
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    start_step: int,
    latents: LatentCache | None,
    should_stop: Callable[[], bool],
) -> Iterator[list[MicroBatch]]:
    """Yield the micro-batches of each remaining step, on the device of this process.

    Args:
        clips: The training clips.
        config: The settings of the run.
        accelerator: Of this process.
        start_step: Number of updates done.
        latents: The posteriors of all these clips; None if the encoder computes them.
        should_stop: Whether to stop waiting for a batch, asked once a second while waiting.

    Raises:
        ReadingStopped: `should_stop` returned true while a batch was waited for.
    """
    loader = clip_loader(
        clips,
        batch_size=config.clips_per_pass,
        start_step=start_step,
        num_steps=config.steps,
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
        num_micro_batches=config.gradient_accumulation_steps,
        should_stop=should_stop,
    )
    batches: list[MicroBatch] = []
    for items, batch in zip(loader.sampler, loader, strict=True):
        video = batch["video"].to(accelerator.device, non_blocking=True)
        posterior = None if latents is None else latents.read(names_of(clips, items), accelerator.device)
        batches.append(MicroBatch(video, [index for _, index in items], posterior))
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
