"""Read the clips that a training run reads first, measure them, and list the files of the data set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

import psutil
from torch import Tensor

from telecine.base.checks import check_count
from telecine.base.devices import gigabytes
from telecine.base.terminal import with_progress
from telecine.data import ClipBatchSampler, ClipDataset, Span, bytes_from_video, num_cached_bytes
from telecine.data.clip import make_clip
from telecine.data.find import ignored_suffixes
from telecine.data.source import Source, VideoInfo
from telecine.data_report.files import FileRow, file_row, groups_of_copies
from telecine.data_report.measures import DEFINITIONS, brightness, cuts, is_black, is_static
from telecine.settings import TrainConfig
from telecine.training.clips import Spans, find_spans

# Clips per update if `batch_size` is "auto", which a device decides.
BATCH_SIZE = 4
# Decoding begins at a keyframe: at larger distances, most of the frames that are decoded are not used.
LONG_DISTANCE = 60
# The cache leaves the rest of the free memory to the networks.
CACHE_FRACTION = 0.5
REENCODE = "ffmpeg -i IN -c:v libx264 -crf 16 -g 30 OUT.mp4"


@dataclass(frozen=True)
class SampledClip:
    """A clip as training sees it."""

    frames: Tensor
    """uint8 `(T, H, W, 3)`."""
    source: str
    start: int
    """Index of its first frame in the file."""
    seconds: float
    """How long one core took to read it."""
    remarks: tuple[str, ...]
    """What is unusual about it: black, static, a cut."""
    orientation: str
    """How it was mirrored and turned, in words; empty if it was not."""


@dataclass(frozen=True)
class DataReport:
    """What a training run will see."""

    data: str
    clips: list[SampledClip]
    fps: float
    """Of clips of the first video."""
    files: list[FileRow]
    """Those that can be used, then those that cannot."""
    ignored: dict[str, int]
    """Files of other kinds in the folder, by suffix."""
    copies: list[list[str]]
    num_train: int
    """Frames to train on."""
    num_held_out: int
    cache_bytes: int
    """Size of all training frames, decoded at the size of the clips."""
    advice: list[str]

    @property
    def clips_per_second(self) -> float:
        """How many of the sampled clips one core reads in a second."""
        return len(self.clips) / sum(clip.seconds for clip in self.clips)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, without the frames."""
        values = asdict(replace(self, clips=[]))
        values["clips"] = [
            {name: value for name, value in vars(clip).items() if name != "frames"} | {"shape": list(clip.frames.shape)}
            for clip in self.clips
        ]
        return values | {"clips_per_second": self.clips_per_second, "definitions": DEFINITIONS}


def inspect_data(config: TrainConfig, num_clips: int = 24) -> DataReport:
    """Read the first clips of a training run with these settings, and list the files of its data.

    Args:
        config: The settings of the run. `clips.cache` is ignored.
        num_clips: How many clips to read.

    Raises:
        ValueError: `num_clips` is below 1.
        DataError: There is no usable video.
    """
    check_count("num_clips", num_clips)
    spans = find_spans(config.data, config.val_data, config.clips)
    dataset = ClipDataset(spans.train, replace(config.clips, cache=False), seed=config.seed)
    clips = list(with_progress(sample(dataset, config, num_clips), "reading clips", total=num_clips))
    infos = list({span.info.path: span.info for span in spans.found}.values())
    used = {True: dataset.image_ratio > 0, False: dataset.image_ratio < 1}  # images, videos
    held_out = [span for span in spans.held_out if used[span.info.is_image]]
    spans = replace(spans, train=dataset.spans, held_out=held_out)
    files = [*rows(infos, spans, config), *(FileRow(str(each.path), each.reason, False) for each in spans.skipped)]
    cache_bytes = num_cached_bytes(dataset.spans, config.clips)
    first = min(dataset.spans, key=lambda span: span.info.is_image)
    report = DataReport(
        data=config.data or "the sample videos",
        clips=clips,
        fps=first.info.fps / config.clips.stride,
        files=files,
        ignored=dict(ignored_suffixes(config.data)) if config.data else {},
        copies=groups_of_copies(infos),
        num_train=num_frames(dataset.spans),
        num_held_out=num_frames(spans.held_out),
        cache_bytes=cache_bytes,
        advice=[],
    )
    return replace(report, advice=list(advice(report, config)))


def sample(dataset: ClipDataset, config: TrainConfig, num_clips: int) -> Iterator[SampledClip]:
    """Yield the first clips of a run in one process, in the order in which it reads them."""
    size = BATCH_SIZE if config.batch_size == "auto" else config.batch_size
    sampler = ClipBatchSampler(range(num_clips), size, config.gradient_accumulation_steps, rank=0, num_ranks=1)
    for item in islice(chain.from_iterable(sampler), num_clips):
        start = time.perf_counter()
        decoded, spec, bucket = dataset.decode(item)
        clip = make_clip(decoded, spec, bucket)
        seconds = time.perf_counter() - start
        frames = bytes_from_video(clip["video"])
        remarked = tuple(remarks(frames))
        yield SampledClip(frames, clip["source"], clip["start"], seconds, remarked, spec.orientation)


def remarks(frames: Tensor) -> Iterator[str]:
    """Yield what is unusual about a clip of uint8 frames `(T, H, W, 3)`."""
    grid = brightness(frames)
    if is_black(grid):
        yield "black"
    elif is_static(grid):
        yield "static"
    for position in cuts(grid):
        yield f"cut before frame {position}"


def rows(infos: Sequence[VideoInfo], spans: Spans, config: TrainConfig) -> Iterator[FileRow]:
    """Yield a row for each file that can be decoded."""
    shortest = min(map(config.clips.span_of, config.clips.train_buckets))
    uses: dict[Source, list[str]] = {}
    for use, used in (("training", spans.train), ("held out", spans.held_out)):
        for span in used:
            is_long = span.info.is_image or span.num_frames >= shortest
            if is_long and use not in uses.setdefault(span.info.path, []):
                uses[span.info.path].append(use)
    for info in with_progress(infos, "reading files", total=len(infos)):
        if found := uses.get(info.path):
            use = " and ".join(found)
        elif info.is_image:
            use = "an image, and `clips.image_ratio` is 0"
        elif config.clips.image_ratio == 1:
            use = "a video, and `clips.image_ratio` is 1"
        else:
            use = f"{info.num_frames} frames; a clip needs {shortest}"
        yield file_row(info, use, is_used=bool(found))


def num_frames(spans: Sequence[Span]) -> int:
    """Return the frames of spans."""
    return sum(span.num_frames for span in spans)


def advice(report: DataReport, config: TrainConfig) -> Iterator[str]:
    """Yield what would help."""
    speed, workers = report.clips_per_second, config.clips.num_workers
    yield (
        f"One core reads {speed:.3g} clips a second; {workers} workers (`--clips.num_workers`) up to "
        f"{speed * max(workers, 1):.3g}, if there are as many cores. Training that is faster than that waits for clips."
    )
    distances = [row.keyframe_distance for row in report.files if row.is_used and row.keyframe_distance is not None]
    if far := sum(distance > LONG_DISTANCE for distance in distances):
        yield (
            f"More than {LONG_DISTANCE} frames between keyframes: {far} of {len(distances)} videos. Reading a clip "
            f"decodes all frames from the keyframe before it. Re-encode them with `{REENCODE}`."
        )
    fits = report.cache_bytes < CACHE_FRACTION * psutil.virtual_memory().available
    size = gigabytes(report.cache_bytes)
    yield (
        f"All training frames take {size} at this size: `--clips.cache true` decodes them once."
        if fits
        else f"All training frames take {size} at this size, too much for `--clips.cache` on this machine."
    )
    num_unusual = sum(bool(clip.remarks) for clip in report.clips)
    if num_unusual:
        yield (
            f"Black, static or with a cut: {num_unusual} of {len(report.clips)} sampled clips. A list of segments "
            "leaves them out: `--data scenes.csv`, with the columns path, start and end."
        )
    if report.copies:
        yield (
            f"Groups of files that are copies: {len(report.copies)}. Keep one of each: held-out clips may be copies of "
            "training clips."
        )
