"""Random training clips, each a pure function of the seed, the step and the clip's index; frames kept in memory."""

import logging
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, product
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from telecine.base.checks import argument_error
from telecine.base.devices import machine_memory
from telecine.base.randomness import seed_of
from telecine.base.terminal import with_progress
from telecine.data.clip import Clip, ClipSpec, decode_clip, make_clip
from telecine.data.decode import read_clip
from telecine.data.errors import DataError, DecodeError
from telecine.data.source import Source, Span
from telecine.settings import Bucket, ClipConfig

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 16
_MAX_MEMORY_FRACTION = 0.8  # the rest is left to the model and to other processes

Item: TypeAlias = tuple[int, int]  # the step, and the index of a clip in the sequence of all clips


class _SpanPool:
    """The spans that are long enough for a clip. Raises a `DataError` if there are none.

    All positions of a clip are equally likely, or with `by_file` all files, and all positions in each.
    """

    def __init__(self, spans: Sequence[Span], clip_span: int, *, by_file: bool = False) -> None:
        self.spans = [span for span in spans if span.num_starts(clip_span) > 0]
        if not self.spans:
            contract = f"at least one span of {clip_span} frames, (num_frames - 1) * stride + 1"
            remedy = "Use fewer frames or a smaller stride."
            raise argument_error("spans", contract, f"{len(spans)} shorter ones", remedy, DataError)
        self._ends = list(accumulate(span.num_starts(clip_span) for span in self.spans))
        files: dict[Source, list[Span]] = {}
        for span in self.spans if by_file else ():
            files.setdefault(span.info.path, []).append(span)
        self._files = [_SpanPool(each, clip_span) for each in files.values()]

    def draw(self, generator: torch.Generator) -> tuple[Span, int]:
        """Draw a span and the index of a clip's first frame in its video."""
        if self._files:
            return self._files[int(torch.randint(len(self._files), (), generator=generator))].draw(generator)
        position = int(torch.randint(self._ends[-1], (), generator=generator))
        which = bisect_right(self._ends, position)
        span = self.spans[which]
        return span, span.first_frame + position - (self._ends[which - 1] if which else 0)


class ClipDataset(Dataset[Clip]):
    """An infinite sequence of random clips. Item `(step, index)` depends only on the spans, the settings and the seed.

    A resumed run therefore reads the same clips, with any number of workers and processes. The step determines the size
    of its clips and whether they are images, so that they can be batched; the index determines the rest. With
    `config.num_clips`, it counts modulo that number. `dataset[index]` is `dataset[index, index]`.

    All first frames of clips are equally likely, and so are all images, unless `config.weighting` is "files". A clip
    that cannot be decoded is replaced by another draw, which is equally reproducible. Its file is logged once. After 16
    in a row, reading raises a `DataError`.

    Args:
        spans: Frames of videos, images, or both. If there are only images, all clips are images.
        config: If its `cache` is on, the constructor decodes all frames.

    Raises:
        ValueError: the frames to cache do not fit in memory.
        DataError: no span is long enough for a size of clips, or `config.image_ratio` needs images.
    """

    def __init__(self, spans: Sequence[Span], config: ClipConfig, *, seed: int = 0) -> None:
        videos = [span for span in spans if not span.info.is_image]
        images = [span for span in spans if span.info.is_image]
        self.config = config
        self.seed = seed
        self.image_ratio = _image_ratio(videos, images, config)
        lengths = {bucket.num_frames: config.span_of(bucket) for bucket in config.train_buckets if self.image_ratio < 1}
        pool = partial(_SpanPool, by_file=config.weighting == "files")
        self._videos = {num_frames: pool(videos, clip_span) for num_frames, clip_span in lengths.items()}
        self._images = pool(images, clip_span=1) if self.image_ratio > 0 else None
        pools = [*self._videos.values(), *([self._images] if self._images else [])]
        used = {id(span) for pool in pools for span in pool.spans}
        self.spans = [span for span in spans if id(span) in used]
        self.cache = _DecodedCache(self.spans, config) if config.cache else None
        self._logged: set[Source] = set()

    def __getitem__(self, item: int | Item) -> Clip:
        return make_clip(*self.decode(item))

    def decode(self, item: int | Item) -> tuple[Tensor, ClipSpec, Bucket]:
        """Return the arguments of `make_clip` for an item: frames `(T, H, W, C)`, the spec and the size."""
        step, index = (item, item) if isinstance(item, int) else item
        pool, bucket = self._draw_pool(step)
        for attempt in range(_MAX_ATTEMPTS):
            spec = self._draw_spec(pool, index, attempt)
            try:
                frames = self.cache.read(spec.span, spec.start, bucket) if self.cache else None
                return decode_clip(spec, bucket, self.config) if frames is None else frames, spec, bucket
            except DecodeError as error:
                if (path := spec.span.info.path) not in self._logged:
                    self._logged.add(path)
                    logger.warning("replacing clips that cannot be decoded: %s", error)
        got = f"{_MAX_ATTEMPTS} clips in a row that cannot be decoded"
        raise argument_error("data", "decodable", got, "Remove the files named in the log.", DataError)

    def names_of(self, items: Sequence[tuple[int, int]]) -> list[str]:
        """Return the names of items `(step, index)` of one step. Clips of one name are equal."""
        pool, bucket = self._draw_pool(items[0][0])
        kind = "image" if pool is self._images else "video"
        return [f"{kind}-{bucket}-{self._number(index)}" for _, index in items]

    def source_at(self, step: int, index: int) -> str:
        """Return the file of item `(step, index)`, before any replacement."""
        return str(self._draw_spec(self._draw_pool(step)[0], index, attempt=0).span.info.path)

    def _draw_pool(self, step: int) -> tuple[_SpanPool, Bucket]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "step", step))
        bucket = _draw_bucket(self.config.train_buckets, generator)
        is_image = float(torch.rand((), generator=generator, dtype=torch.float64)) < self.image_ratio
        if is_image and self._images is not None:
            return self._images, bucket.as_image()
        return self._videos[bucket.num_frames], bucket

    def _draw_spec(self, pool: _SpanPool, index: int, attempt: int) -> ClipSpec:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self._number(index), attempt))
        span, start = pool.draw(generator)
        scale, top, left, flip = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        turns = torch.rand(2, generator=generator) < 0.5 if self.config.random_orientation else (False, False)
        crop_scale = 1.0 + scale * (self.config.scale_jitter - 1.0)
        is_flipped = self.config.random_flip and flip < 0.5
        upside_down, transpose = map(bool, turns)
        return ClipSpec(span, start, crop_scale, top, left, is_flipped, upside_down, transpose, self.config.stride)

    def _number(self, index: int) -> int:
        """Return the number that determines a clip. With `num_clips`, numbers repeat."""
        return index if self.config.num_clips is None else index % self.config.num_clips


def _image_ratio(videos: Sequence[Span], images: Sequence[Span], config: ClipConfig) -> float:
    """Return the fraction of steps that train on images: 1 if there are no videos."""
    if config.image_ratio > 0 and not images:
        remedy = "Add images to the data, or set it to 0."
        raise argument_error("image_ratio", "0 for data without images", config.image_ratio, remedy, DataError)
    if not videos and images:
        return 1.0
    if images and config.image_ratio == 0:
        logger.warning("%d images are not trained on, because `image_ratio` is 0", len(images))
    return config.image_ratio


def _draw_bucket(buckets: Sequence[Bucket], generator: torch.Generator) -> Bucket:
    ends = list(accumulate(bucket.weight for bucket in buckets))
    point = float(torch.rand((), generator=generator, dtype=torch.float64)) * ends[-1]
    return buckets[min(bisect_right(ends, point), len(buckets) - 1)]


class _DecodedCache:
    """All frames of spans without damage at each training resolution, in memory that worker processes share."""

    def __init__(self, spans: Sequence[Span], config: ClipConfig) -> None:
        memory, needed = machine_memory(), num_cached_bytes(spans, config)
        num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by `torchrun`
        if num_processes * needed > _MAX_MEMORY_FRACTION * memory:
            each = f" in each of {num_processes} processes" if num_processes > 1 else ""
            contract = f"off if frames take more than {_MAX_MEMORY_FRACTION:.0%} of {memory / 2**30:.1f} GiB of memory"
            got = f"on for {needed / 2**30:.1f} GiB of decoded frames{each}"
            raise argument_error("cache", contract, got, "Turn it off, or train at a smaller size.")
        self.config = config
        self._frames: dict[tuple[Span, int, int], Tensor] = {}
        for span, bucket, size in with_progress(_resolutions(spans, config), "decoding videos"):
            try:
                limit, pixels = config.max_pixels, config.pixel_format
                frames = read_clip(span.info, span.first_frame, span.num_frames, 1, size, limit, pixels)
                self._frames[span, bucket.height, bucket.width] = frames
            except DecodeError as error:
                logger.warning("not cached: %s", error)

    def read(self, span: Span, start: int, bucket: Bucket) -> Tensor | None:
        """Return the frames `(T, H, W, C)` of a clip from frame `start`, as a view; None if a frame is damaged."""
        frames, offset = self._frames.get((span, bucket.height, bucket.width)), start - span.first_frame
        return None if frames is None else frames[offset : offset + self.config.span_of(bucket) : self.config.stride]


def num_cached_bytes(spans: Sequence[Span], config: ClipConfig) -> int:
    """Return the size of the decoded frames of `spans` in bytes."""
    return config.num_channels * sum(
        span.num_frames * height * width * (4 if span.info.layout else config.bit_depth // 8)
        for span, _, (height, width) in _resolutions(spans, config)
    )


def _resolutions(spans: Sequence[Span], config: ClipConfig) -> list[tuple[Span, Bucket, tuple[int, int]]]:
    """Return each span with one bucket of each height and width, and the size to decode it at."""
    buckets = {(bucket.height, bucket.width): bucket for bucket in config.train_buckets}.values()
    return [
        (span, bucket, bucket.decode_size(span.info.height, span.info.width, config.scale_jitter))
        for bucket, span in product(buckets, spans)
    ]
