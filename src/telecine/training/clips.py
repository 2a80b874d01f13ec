"""The clips of a run: the videos that it uses, and what is held out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

from accelerate.utils import gather_object

from telecine.base.checks import argument_error, count, count_files
from telecine.data import Clip, ClipDataset, DataError, ReadingStopped, Span, whole_video
from telecine.data.clip import bytes_from_video, clips_sha256, pixels_sha256
from telecine.data.find import load_spans, sample_videos
from telecine.data.index import Skipped, index_video, index_videos, log_too_short
from telecine.data.index_cache import num_bytes
from telecine.data.validation import read_validation_clips, split_videos, without_held_out
from telecine.models import VideoAutoencoder
from telecine.models.interface import check_buckets, check_channels
from telecine.ops.ranks import num_ranks
from telecine.runs.run import ValidationClips
from telecine.settings import ClipConfig, TrainConfig
from telecine.training.distributed import barrier_without_time_limit, rank
from telecine.training.step import MicroBatch


@dataclass(frozen=True)
class Clips:
    """The clips of a run, for training and for validation."""

    train: ClipDataset
    val: list[Clip]
    num_videos: int
    num_images: int  # still images that are used
    num_skipped: int  # files that cannot be decoded or are shorter than a clip, and lines of a list without frames

    def describe(self) -> str:
        """Return the numbers of files and held-out clips, for the console."""
        skipped = f", {self.num_skipped} skipped" if self.num_skipped else ""
        clips = self.train.config
        lpips = "" if clips.has_colours else f"; LPIPS is off, which knows colours, not {clips.num_channels} channels"
        held_out = count(len(self.val), "held-out clip")
        return f"{count_files(self.num_videos, self.num_images)}{skipped}, {held_out}{lpips}"

    def recorded(self) -> dict[str, Any]:
        """Return what a summary has about the data of a run."""
        spans = self.train.spans
        sizes = {path: num_bytes(path) for path in {span.info.path for span in spans}}
        files = ((span.info.path, span.first_frame, span.last_frame) for span in spans)
        facts = "".join(repr((path.name, sizes[path], *frames)) for path, *frames in files)
        # What identifies the clips that a run validates on, with the hash that `telecine evaluate` records.
        hashes = [pixels_sha256(bytes_from_video(clip["video"])) for clip in self.val]
        _, num_frames, height, width = self.val[0]["video"].shape
        return {
            "num_videos": self.num_videos,
            "num_images": self.num_images,
            "num_skipped": self.num_skipped,
            "num_frames": sum(span.num_frames for span in spans),
            "validation": ValidationClips(len(hashes), num_frames, height, width, clips_sha256(hashes)),
            "data_sha256": sha256(facts.encode()).hexdigest(),
        }


@dataclass(frozen=True)
class Spans:
    """The frames of a data set."""

    found: list[Span]  # of all videos and images that can be decoded, in order
    train: list[Span]
    held_out: list[Span]
    skipped: list[Skipped]  # files that cannot be decoded, and lines of a list without frames
    num_short: int  # videos that are shorter than a clip

    @classmethod
    def find(cls, data: str | None, val_data: str | None, config: ClipConfig) -> "Spans":
        """Find, index and split the videos and images of `TrainConfig.data` and `TrainConfig.val_data`."""
        if data is None:
            infos, skipped = index_videos(sample_videos(), index=partial(index_video, config=config))
            found = [whole_video(info) for info in infos]
        else:
            found, skipped = load_spans(data, config)
        num_short = log_too_short(found, min(map(config.span_of, config.train_buckets)))
        if val_data is None:
            used = [span for span in found if span.info.is_image or config.image_ratio < 1]
            train, held_out = split_videos(used or found, config.val_fraction, config.clip_span)
        else:
            held_out, _ = load_spans(val_data, config, name="val_data")
            train = without_held_out(found, held_out)
        return cls(found, train, held_out, skipped, num_short)


def build_clips(config: TrainConfig, model: VideoAutoencoder) -> Clips:
    """Find, index and split the videos, and read the validation clips. Every process has to call this."""
    check_channels(config.clips, model)
    check_buckets(config.clips.train_buckets, model, images=config.clips.image_ratio > 0)
    with barrier_without_time_limit() as wait_for_everyone:
        if rank() > 0:  # the first process indexes the videos, the others then read its index
            wait_for_everyone()
        spans = Spans.find(config.data, config.val_data, config.clips)
        if rank() == 0:
            wait_for_everyone()
        # Without zoom, as `telecine evaluate` reads clips.
        val_config, name = replace(config.clips, scale_jitter=1.0), "data" if config.val_data is None else "val_data"
        val = read_validation_clips(spans.held_out, val_config, config.val_clips, name=name)
        train = ClipDataset(spans.train, config.clips, seed=config.seed)
        check_buckets(config.clips.train_buckets, model, images=train.image_ratio > 0)  # images alone need no ratio
    is_image = {span.info.path: span.info.is_image for span in spans.found}
    num_images = sum(is_image.values())
    clips = Clips(
        train=train,
        val=val,
        num_videos=len(is_image) - num_images - spans.num_short if train.image_ratio < 1 else 0,
        num_images=num_images if train.image_ratio > 0 else 0,
        num_skipped=len(spans.skipped) + spans.num_short,
    )
    if num_ranks() > 1:
        _check_same_data(clips.recorded())
    return clips


def _check_same_data(recorded: Mapping[str, Any]) -> None:
    """Raise a `ValueError` in every process if one has other data than the first."""
    found = gather_object([(recorded["data_sha256"], recorded["validation"])])
    if others := [str(number) for number, each in enumerate(found) if each != found[0]]:
        got = f"other files, frames or held-out clips in process {', '.join(others)} than in process 0"
        raise argument_error("data", "the same in all processes", got, "Copy it to all machines, or to a shared disk.")


def read_next(batches: Iterator[list[MicroBatch]]) -> tuple[list[MicroBatch], Exception | None]:
    """Return the next micro-batches, or the error of reading them; neither after a stop."""
    try:
        return next(batches), None
    except ReadingStopped:
        return [], None
    except (DataError, OSError, RuntimeError) as error:
        return [], error
