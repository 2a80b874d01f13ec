"""The clips of a run: the videos that it uses, what is held out, and the micro-batches of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from accelerate import Accelerator

from telecine.autoencoders import VideoAutoencoder
from telecine.base.checks import count, count_files
from telecine.data import (
    Clip,
    ClipDataset,
    DataError,
    ReadingStopped,
    Skipped,
    Span,
    clip_loader,
    index_videos,
    load_spans,
    log_too_short,
    read_validation_clips,
    sample_videos,
    split_videos,
    whole_video,
)
from telecine.data.clip import check_buckets
from telecine.settings import ClipConfig, TrainConfig
from telecine.training.distributed import barrier_without_time_limit, rank
from telecine.training.latents import LatentCache
from telecine.training.step import MicroBatch


@dataclass(frozen=True)
class Clips:
    """The clips of a run, for training and for validation."""

    train: ClipDataset
    val: list[Clip]
    num_videos: int
    num_images: int
    """Still images that are used."""
    num_skipped: int
    """Files that cannot be decoded or are shorter than a clip, and lines of a list without frames."""

    def describe(self) -> str:
        """Return the numbers of files and held-out clips, for the console."""
        skipped = f", {self.num_skipped} skipped" if self.num_skipped else ""
        return f"{count_files(self.num_videos, self.num_images)}{skipped}, {count(len(self.val), 'held-out clip')}"


@dataclass(frozen=True)
class Spans:
    """The frames of a data set."""

    found: list[Span]
    """Of all videos and images that can be decoded, in order."""
    train: list[Span]
    held_out: list[Span]
    skipped: list[Skipped]
    """Files that cannot be decoded, and lines of a list without frames."""
    num_short: int
    """Videos that are shorter than a clip."""


def build_clips(config: TrainConfig, model: VideoAutoencoder) -> Clips:
    """Find, index and split the videos, and read the validation clips. Every process has to call this.

    The first process indexes the videos, the others then read its index. They wait without a time limit.
    """
    check_buckets(config.clips.train_buckets, model, images=config.clips.image_ratio > 0)
    with barrier_without_time_limit() as wait_for_everyone:
        if rank() > 0:
            wait_for_everyone()
        spans = find_spans(config.data, config.val_data, config.clips)
        if rank() == 0:
            wait_for_everyone()
        # Without zoom, as `telecine evaluate` reads clips, so that their figures can be compared.
        val_config, name = replace(config.clips, scale_jitter=1.0), "data" if config.val_data is None else "val_data"
        val = read_validation_clips(spans.held_out, val_config, config.val_clips, name=name)
        train = ClipDataset(spans.train, config.clips, seed=config.seed)
        check_buckets(config.clips.train_buckets, model, images=train.image_ratio > 0)  # images alone need no ratio
        wait_for_everyone()
    is_image = {span.info.path: span.info.is_image for span in spans.found}
    num_images = sum(is_image.values())
    return Clips(
        train=train,
        val=val,
        num_videos=len(is_image) - num_images - spans.num_short if train.image_ratio < 1 else 0,
        num_images=num_images if train.image_ratio > 0 else 0,
        num_skipped=len(spans.skipped) + spans.num_short,
    )


def find_spans(data: str | None, val_data: str | None, config: ClipConfig) -> Spans:
    """Find, index and split the videos and images of `TrainConfig.data` and `TrainConfig.val_data`."""
    load = partial(load_spans, max_pixels=config.max_pixels, timeout=config.timeout)
    if data is None:
        infos, skipped = index_videos(sample_videos())
        found = [whole_video(info) for info in infos]
    else:
        found, skipped = load(data)
    num_short = log_too_short(found, min(map(config.span_of, config.train_buckets)))
    if val_data is None:
        train, held_out = split_videos(found, config.val_fraction, config.clip_span)
    else:
        train, (held_out, _) = found, load(val_data, name="val_data")
    return Spans(found, train, held_out, skipped, num_short)


def read_batches(
    clips: ClipDataset,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_micro_batches: int,
    start_step: int,
    num_steps: int,
    latents: LatentCache | None,
    should_stop: Callable[[], bool],
) -> Iterator[list[MicroBatch]]:
    """Yield the micro-batches of each remaining step, on the device of this process, see `clip_loader`."""
    loader = clip_loader(
        clips,
        batch_size=batch_size,
        start_step=start_step,
        num_steps=num_steps,
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
        num_micro_batches=num_micro_batches,
        should_stop=should_stop,
    )
    batches: list[MicroBatch] = []
    for items, batch in zip(loader.sampler, loader, strict=True):
        video = batch["video"].to(accelerator.device, non_blocking=True)
        posterior = None if latents is None else latents.read(clips.names_of(items), accelerator.device)
        batches.append(MicroBatch(video, [index for _, index in items], posterior))
        if len(batches) == num_micro_batches:
            yield batches
            batches = []


def read_next(batches: Iterator[list[MicroBatch]]) -> tuple[list[MicroBatch], Exception | None]:
    """Return the next micro-batches, or the error of reading them; neither after a stop."""
    try:
        return next(batches), None
    except ReadingStopped:
        return [], None
    except (DataError, OSError, RuntimeError) as error:
        return [], error
