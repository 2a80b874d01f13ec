"""The clips of a run: the videos that it uses, what is held out, and the batches of each update."""

import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from telecine.base.checks import argument_error, count, count_files
from telecine.data import (
    Clip,
    ClipBatchSampler,
    ClipDataset,
    ClipLoader,
    DataError,
    ReadingStopped,
    TrainingClips,
    whole_video,
)
from telecine.data.clip import bytes_from_video, clips_sha256, pixels_sha256
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import ChangedError
from telecine.data.find import load_spans, sample_videos
from telecine.data.holdout import split_table
from telecine.data.holdout_summary import describe_held_out, warn_of_held_out
from telecine.data.index import index_video, index_videos
from telecine.data.lazy.load_table import load_table
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lazy.sorted_numbers import first_of_each
from telecine.data.mapped import MapDataset, MappedClips, read_mapped, split_indices
from telecine.data.processes import check_same_data, log_in_first_process
from telecine.data.source import Skipped
from telecine.data.spacing import evenly_spaced
from telecine.data.span_table import SpanTable
from telecine.data.validation import (
    index_validation_spans,
    leave_out,
    read_validation_clips,
)
from telecine.models import VideoAutoencoder
from telecine.models.interface import check_buckets
from telecine.ops.ranks import data_rank, num_data_ranks, num_ranks
from telecine.runs.summary import ValidationSet
from telecine.settings import ClipConfig, TrainConfig
from telecine.settings.data import FILES, settings_marked
from telecine.training.distributed import barrier_without_time_limit, rank
from telecine.training.latent_cache import LatentCache
from telecine.training.state import TrainState
from telecine.training.step import MicroBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """The clips of a run, for training and for validation."""

    train: TrainingClips
    val: list[Clip]
    num_videos: int
    num_images: int
    """Still images that are used."""
    num_skipped: int
    """Files that cannot be decoded or are shorter than a clip, and lines of a list without frames."""
    held_out: str = ""
    """The files that are held out, see `describe_held_out`; empty with `val_data`."""

    def describe(self) -> str:
        """Return the numbers of files and held-out clips, for the console."""
        text = count_files(self.num_videos, self.num_images)
        if self.num_skipped:
            text += f", {self.num_skipped} skipped"
        text += f", {count(len(self.val), 'held-out clip')}"
        return text

    def recorded(self) -> dict[str, Any]:
        """Return what the summary of a run has about its data, by the names of `RunSummary`.

        Hashes identify the files to train on, and the clips that the run validates on.
        """
        spans = SpanTable.of(self.train.spans)
        data_sha256, content_sha256 = spans.sha256()
        # The hash that `telecine evaluate` records.
        hashes = [pixels_sha256(bytes_from_video(clip["video"])) for clip in self.val]
        _, num_frames, height, width = self.val[0]["video"].shape
        return {
            "num_videos": self.num_videos,
            "num_images": self.num_images,
            "num_skipped": self.num_skipped,
            "num_frames": int(spans.num_frames.sum()),
            "validation": ValidationSet(
                len(hashes), num_frames, height, width, clips_sha256(hashes)
            ),
            "data_sha256": data_sha256,
            "content_sha256": content_sha256,
            "held_out": self.held_out,
        }

    def check_same_in_all_processes(self) -> None:
        """Check that all processes have the same clips. Each has to call this.

        Raises:
            ValueError: In every process, if one has other clips than the first.
        """
        recorded = self.recorded()
        data = (recorded["data_sha256"], recorded["content_sha256"], recorded["validation"])
        check_same_data(data, "files, frames or held-out clips")


@dataclass(frozen=True)
class Spans:
    """The frames of a data set."""

    usable: SpanTable
    """Of all videos and images that can be decoded, in order."""
    train: SpanTable
    held_out: SpanTable
    skipped: list[Skipped]
    """Files that cannot be decoded, and lines of a list without frames."""
    num_short: int
    """Videos that are shorter than a clip."""
    saved_index: SavedIndex | None = None
    """Has or makes the indices of the files of `usable` and `train` if their spans are estimated."""
    val_saved_index: SavedIndex | None = None
    """The same for `held_out`."""

    @classmethod
    def find(
        cls,
        data: str | Sequence[str] | None,
        val_data: str | Sequence[str] | None,
        config: ClipConfig,
    ) -> "Spans":
        """Find, index and split the videos and images of a data set. With `config.index` "lazy", headers are read only.

        Args:
            data: The data to train on, see `TrainConfig.data`; by default the sample videos.
            val_data: The data to validate on, see `TrainConfig.val_data`; by default a part of `data`.
            config: The settings of the clips.
        """
        if config.index == "lazy" and data is not None:
            estimated = cls._find_lazily(data, val_data, config)
            if estimated is not None:
                return estimated
        if data is None:
            infos, skipped = index_videos(
                sample_videos(), index=lambda path: index_video(path, config=config)
            )
            spans = [whole_video(info) for info in infos]
        else:
            spans, skipped = load_spans(data, config)
        usable = SpanTable.of(spans)
        num_short = usable.log_too_short(ClipFrames.shortest(config))
        if val_data is None:
            parts = split_table(_to_split(usable, config), config)
            assert parts is not None
            train, held_out = parts
            warn_of_held_out(train, held_out, config.val_fraction)
        else:
            val_spans, _ = load_spans(val_data, config, name="val_data")
            held_out = SpanTable.of(val_spans)
            train = leave_out(usable, held_out, copies=config.file_identity == "content")
        return cls(usable, train, held_out, skipped, num_short)

    @classmethod
    def _find_lazily(
        cls, data: str | Sequence[str], val_data: str | Sequence[str] | None, config: ClipConfig
    ) -> "Spans | None":
        """Find and split videos and images by their headers; None if `split_table` needs all of them indexed."""
        table = load_table(data, config)
        if val_data is None:
            parts = split_table(_to_split(table.spans, config), config)
            if parts is None:
                return None
            train, held_out = parts
            val_saved_index = table.saved_index
            warn_of_held_out(train, held_out, config.val_fraction)
        else:
            val_table = load_table(val_data, config, name="val_data")
            held_out = val_table.spans
            val_saved_index = val_table.saved_index
            train = leave_out(table.spans, held_out)
        num_short = table.spans.log_too_short(ClipFrames.shortest(config))
        table.spans.files.release_pages()
        return cls(
            table.spans,
            train,
            held_out,
            table.skipped,
            num_short,
            saved_index=table.saved_index,
            val_saved_index=val_saved_index,
        )

    def forget_addresses(self) -> None:
        """Let the next run ask the servers of files again, whose answers were saved."""
        for saved_index in (self.saved_index, self.val_saved_index):
            if saved_index is not None:
                saved_index.forget_addresses()


def _to_split(spans: SpanTable, config: ClipConfig) -> SpanTable:
    """Return the spans of which some are held out: no videos if all clips are images."""
    if config.image_ratio < 1 or not spans.is_image.any():
        return spans
    return spans.take(spans.is_image)


def map_clips(config: TrainConfig, dataset: MapDataset) -> Clips:
    """Split a map-style data set, and read the validation clips. Every process has to call this.

    Args:
        config: The settings. Those of files and of several sizes have to be left out.
        dataset: The clips, see `MappedClips`.

    Raises:
        ValueError: A setting is for files, or a process has other clips than the first one.
        DataError: There are fewer than two clips, or a validation clip is not as `config.clips` says.
    """
    clips = config.clips
    for_files: dict[str, Any] = {
        "data": config.data,
        "val_data": config.val_data,
        "latent_cache": config.latent_cache,
    }
    defaults = ClipConfig()
    for name in settings_marked(FILES):
        value = getattr(clips, name)
        if value != getattr(defaults, name):
            for_files[f"clips.{name}"] = value
    for name, value in for_files.items():
        if value:
            remedy = "It is for data in files."
            raise argument_error(name, "left out with `dataset`", repr(value), remedy)
    train, held_out = split_indices(len(dataset), clips.val_fraction)
    chosen = [
        held_out[index]
        for index in evenly_spaced(len(held_out), min(config.val_clips, len(held_out)))
    ]
    val = [read_mapped(dataset, index, clips) for index in chosen]
    if min(float(clip["video"].min()) for clip in val) >= 0:
        text = "`dataset` has no value below 0 in its held-out clips. "
        text += "If its range is [0, 1] instead of [-1, 1], map it with `x * 2 - 1`."
        warnings.warn(text, stacklevel=2)
    mapped = Clips(
        train=MappedClips(dataset, train, clips, seed=config.seed),
        val=val,
        num_videos=len(train),
        num_images=0,
        num_skipped=0,
        held_out=f"{len(held_out)} of {len(dataset)} clips of the data set",
    )
    if num_ranks() > 1:
        mapped.check_same_in_all_processes()
    return mapped


def build_clips(config: TrainConfig, model: VideoAutoencoder) -> Clips:
    """Find, index and split the videos, and read the validation clips. Every process has to call this.

    Raises:
        ValueError: If clips do not fit the model, or a process has other data than the first one.
        DataError: If there is no video to train on, or to validate on.
    """
    with (
        log_in_first_process(rank()),
        barrier_without_time_limit() as wait_for_everyone,
    ):
        if rank() > 0:  # the first process indexes the videos, the others then read its index
            wait_for_everyone()
        spans = Spans.find(config.data, config.val_data, config.clips)
        # Without zoom, as `telecine evaluate` reads clips.
        val_config = replace(config.clips, scale_jitter=1.0)
        val_name = "data" if config.val_data is None else "val_data"
        try:
            if spans.val_saved_index is None:
                held_out = spans.held_out.exact
            else:
                held_out = index_validation_spans(
                    spans.held_out, spans.val_saved_index, val_config, config.val_clips
                )
            if rank() == 0:
                wait_for_everyone()
            val = read_validation_clips(held_out, val_config, config.val_clips, name=val_name)
        except ChangedError:
            spans.forget_addresses()
            raise
        train = ClipDataset(
            spans.train, config.clips, seed=config.seed, saved_index=spans.saved_index
        )
        # Data of images alone needs no `image_ratio`.
        check_buckets(config.clips.train_buckets, model, images=train.image_ratio > 0)
    first_places = first_of_each(spans.usable.file)
    num_images = int(spans.usable.is_image[first_places].sum())
    num_videos = len(first_places) - num_images - spans.num_short
    if train.image_ratio == 0:
        num_images = 0
    if train.image_ratio == 1:
        num_videos = 0
    description = ""
    if config.val_data is None:
        description = describe_held_out(spans.train, spans.held_out)
    clips = Clips(
        train=train,
        val=val,
        num_videos=num_videos,
        num_images=num_images,
        num_skipped=len(spans.skipped) + spans.num_short,
        held_out=description,
    )
    if num_ranks() > 1:
        try:
            clips.check_same_in_all_processes()
        except ValueError:
            # A machine may have saved what a server says of another version of a file.
            spans.forget_addresses()
            raise
    return clips


def read_batches(
    config: TrainConfig,
    state: TrainState,
    clips: TrainingClips,
    latent_cache: LatentCache | None,
    *,
    should_stop: Callable[[], bool],
) -> Generator[list[MicroBatch], None, None]:
    """Yield the micro-batches of each remaining update, on the device of this process.

    Args:
        config: The settings of the run.
        state: Its step is the first one to read. Its accelerator has the device, and the part of this process.
        clips: The clips to train on.
        latent_cache: The posteriors of the clips. If the autoencoder trains on latents alone, no video is decoded.
        should_stop: Whether to stop while the data is read, see `ClipLoader`.
    """
    accelerator = state.accelerator
    device = accelerator.device
    num_micro_batches = config.gradient_accumulation_steps
    sampler = ClipBatchSampler(
        range(state.step * num_micro_batches, config.steps * num_micro_batches),
        config.clips_per_pass,
        num_micro_batches,
        rank=data_rank(),
        num_ranks=num_data_ranks(),
    )
    has_latents_alone = latent_cache is not None and state.autoencoder.trains_on_latents
    videos = None
    if not has_latents_alone:
        videos = iter(ClipLoader(clips, sampler, should_stop=should_stop))
    # On MPS such a copy may read memory that was freed: https://github.com/pytorch/pytorch/issues/139550
    non_blocking = device.type != "mps"
    micro_batches: list[MicroBatch] = []
    for items in sampler:
        posterior = None
        if latent_cache is not None:
            posterior = latent_cache.read(clips.names_of(items), device)
        if videos is not None:
            inputs = next(videos)["video"].to(device, non_blocking=non_blocking)
        else:
            assert posterior is not None
            inputs = posterior.mode()
        numbers = [number for _, number in items]
        micro_batches.append(MicroBatch(inputs, numbers, posterior))
        if len(micro_batches) == num_micro_batches:
            yield micro_batches
            micro_batches = []


def read_next(batches: Iterator[list[MicroBatch]]) -> tuple[list[MicroBatch], Exception | None]:
    """Return the next micro-batches, or the error of reading them; neither after a stop."""
    try:
        return next(batches), None
    except ReadingStopped:
        return [], None
    except (DataError, OSError, RuntimeError) as error:
        return [], error
