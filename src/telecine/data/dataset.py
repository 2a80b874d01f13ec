"""Random training clips, each a pure function of the seed, the step and the clip's index; frames kept in memory."""

import logging
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from telecine.base.checks import argument_error
from telecine.base.devices import machine_memory
from telecine.base.randomness import seed_of
from telecine.base.terminal import with_progress
from telecine.data.clip import Clip, ClipSpec, decode_clip, decoded_size, make_clip, resize_frames
from telecine.data.clip_frames import ClipFrames
from telecine.data.decode import read_clip
from telecine.data.errors import DataError, DecodeError
from telecine.data.source import Source, Span
from telecine.settings import Bucket, ClipConfig

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 16
_MAX_MEMORY_FRACTION = 0.8  # the rest is left to the model and to other processes

Item: TypeAlias = tuple[int, int]  # the step, and the index of a clip in the sequence of all clips


class _SpanPool:
    """The spans that are long enough for a clip. All positions of a clip in them are equally likely.

    All positions, one span after the other, are divided into `num_parts` parts of one size. An epoch draws each once.

    Raises:
        DataError: no span is long enough.
    """

    def __init__(self, spans: Sequence[Span], frames: ClipFrames) -> None:
        self.spans = []
        num_starts = []
        for span in spans:
            num_starts_of_span = frames.num_starts(span)
            if num_starts_of_span > 0:
                self.spans.append(span)
                num_starts.append(num_starts_of_span)
        if not self.spans:
            contract = f"at least one span with {frames.describe()}, {frames.rule()}"
            remedy = "Use fewer frames or a smaller stride."
            raise argument_error("spans", contract, f"{len(spans)} shorter ones", remedy, DataError)
        self._ends = list(accumulate(num_starts))

    @property
    def num_parts(self) -> int:
        """The number of clips in an epoch: that of spans."""
        return len(self.spans)

    def draw(self, generator: torch.Generator, part: int | None = None) -> tuple[Span, int]:
        """Draw a span and the index of a clip's first frame in its video.

        Args:
            generator: The source of random numbers.
            part: The part to draw from; by default all.
        """
        first = 0
        end = self._ends[-1]
        if part is not None:
            first = part * self._ends[-1] // self.num_parts
            end = (part + 1) * self._ends[-1] // self.num_parts
        position = first + int(torch.randint(end - first, (), generator=generator))
        index = bisect_right(self._ends, position)
        begin = self._ends[index - 1] if index > 0 else 0
        span = self.spans[index]
        return span, span.first_frame + position - begin


class _FilePool(_SpanPool):
    """A pool with all files equally likely, and then all positions of a clip in the file."""

    def __init__(self, spans: Sequence[Span], frames: ClipFrames) -> None:
        super().__init__(spans, frames)
        files: dict[Source, list[Span]] = {}
        for span in self.spans:
            files.setdefault(span.info.source, []).append(span)
        self._files = [_SpanPool(file_spans, frames) for file_spans in files.values()]

    @property
    def num_parts(self) -> int:
        """The number of clips in an epoch: that of files."""
        return len(self._files)

    def draw(self, generator: torch.Generator, part: int | None = None) -> tuple[Span, int]:
        """Draw a span and the index of a clip's first frame in its video; a part is a file."""
        if part is None:
            part = int(torch.randint(len(self._files), (), generator=generator))
        return self._files[part].draw(generator)


@lru_cache(maxsize=8)  # clips are read about in their order, of several sizes
def epoch_order(seed: int, epoch: int, num_parts: int) -> Tensor:
    """Return the order in which an epoch draws the parts of the data, a permutation of their indices."""
    generator = torch.Generator().manual_seed(seed_of(seed, "epoch", epoch))
    return torch.randperm(num_parts, generator=generator)


class ClipDataset(Dataset[Clip]):
    """An infinite sequence of random clips. Item `(step, index)` depends only on the spans, the settings and the seed.

    A resumed run therefore reads the same clips, with any number of workers and processes. The step determines the size
    of its clips and whether they are images, so that they can be batched; the index determines the rest. With
    `config.num_clips`, it counts modulo that number. `dataset[index]` is `dataset[index, index]`.

    All first frames of clips are equally likely, and so are all images, unless `config.weighting` is "files". With
    `config.order` "epochs", clips are drawn without repetition: each of as many clips as spans, or files, is drawn from
    another part of the data, in an order that depends on the seed and the number of the epoch. A clip
    that cannot be decoded is replaced by another draw, which is equally reproducible. Its file is logged once. After 16
    in a row, reading raises a `DataError`.

    Args:
        spans: Frames of videos, images, or both. If there are only images, all clips are images.
        config: If its `cache` is on, the constructor decodes all frames.
        seed: Determines all draws.

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
        pool_class = _FilePool if config.weighting == "files" else _SpanPool
        self._videos: dict[int, _SpanPool] = {}  # by the number of frames of a clip
        self._images: _SpanPool | None = None
        if self.image_ratio < 1:
            for bucket in config.train_buckets:
                if bucket.num_frames not in self._videos:
                    self._videos[bucket.num_frames] = pool_class(
                        videos, ClipFrames.of(bucket, config)
                    )
        if self.image_ratio > 0:
            self._images = pool_class(images, ClipFrames(1))
        self.spans = self._used_spans(spans)
        self.cache = DecodedCache(self.spans, config) if config.cache else None
        self._logged: set[Source] = set()

    def _used_spans(self, spans: Sequence[Span]) -> list[Span]:
        """Return the spans that clips are drawn from, in their order."""
        pools = list(self._videos.values())
        if self._images is not None:
            pools.append(self._images)
        used = {
            id(span) for pool in pools for span in pool.spans
        }  # by identity: spans may be equal
        return [span for span in spans if id(span) in used]

    def __getitem__(self, item: int | Item) -> Clip:
        frames, spec, bucket = self.decode(item)
        return make_clip(frames, spec, bucket)

    def decode(self, item: int | Item) -> tuple[Tensor, ClipSpec, Bucket]:
        """Return the arguments of `make_clip` for an item: frames `(T, H, W, C)`, the spec and the size.

        Raises:
            DataError: 16 clips in a row cannot be decoded.
        """
        step, index = (item, item) if isinstance(item, int) else item
        pool, bucket = self._draw_pool(step)
        for attempt in range(_MAX_ATTEMPTS):
            spec = self._draw_spec(pool, index, attempt)
            try:
                frames = None
                if self.cache is not None:
                    frames = self.cache.read(spec.span, spec.start, bucket)
                size = decoded_size(spec, bucket)
                if frames is None:
                    frames = decode_clip(spec, bucket, self.config)
                elif frames.shape[1:3] != size:
                    frames = resize_frames(frames, size)
                return frames, spec, bucket
            except DecodeError as error:
                path = spec.span.info.source
                if path not in self._logged:
                    self._logged.add(path)
                    logger.warning("replacing clips that cannot be decoded: %s", error)
        got = f"{_MAX_ATTEMPTS} clips in a row that cannot be decoded"
        raise argument_error(
            "data", "decodable", got, "Remove the files named in the log.", DataError
        )

    def names_of(self, items: Sequence[Item]) -> list[str]:
        """Return the names of items `(step, index)` of one step. Clips of one name are equal."""
        first_step, _ = items[0]
        pool, bucket = self._draw_pool(first_step)
        kind = "image" if pool is self._images else "video"
        return [f"{kind}-{bucket}-{self._clip_number(index)}" for _, index in items]

    def spec_at(self, step: int, index: int) -> ClipSpec:
        """Return the frames, the crop and the flips of item `(step, index)`, before any replacement."""
        pool, _ = self._draw_pool(step)
        return self._draw_spec(pool, index, attempt=0)

    def source_at(self, step: int, index: int) -> str:
        """Return the file of item `(step, index)`, before any replacement."""
        return str(self.spec_at(step, index).span.info.source)

    def _draw_pool(self, step: int) -> tuple[_SpanPool, Bucket]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "step", step))
        bucket = draw_bucket(self.config.train_buckets, generator)
        is_image = (
            float(torch.rand((), generator=generator, dtype=torch.float64)) < self.image_ratio
        )
        if is_image and self._images is not None:
            return self._images, bucket.as_image()
        return self._videos[bucket.num_frames], bucket

    def _draw_spec(self, pool: _SpanPool, index: int, attempt: int) -> ClipSpec:
        # The order of the draws determines all clips.
        number = self._clip_number(index)
        generator = torch.Generator().manual_seed(seed_of(self.seed, number, attempt))
        part = None
        if self.config.order == "epochs" and attempt == 0:
            epoch, place = divmod(number, pool.num_parts)
            part = int(epoch_order(self.seed, epoch, pool.num_parts)[place])
        span, start = pool.draw(generator, part)
        numbers = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        zoom_number, top, left, flip_number = numbers
        # The side of the crop is uniform between 1 / scale_jitter of the picture's and all of it.
        scale_jitter = self.config.scale_jitter
        zoom = scale_jitter / (1.0 + zoom_number * (scale_jitter - 1.0))
        upside_down = False
        transpose = False
        if self.config.random_orientation:
            upside_down, transpose = (torch.rand(2, generator=generator) < 0.5).tolist()
        return ClipSpec(
            span,
            start,
            zoom=zoom,
            top=top,
            left=left,
            flip=self.config.random_flip and flip_number < 0.5,
            upside_down=upside_down,
            transpose=transpose,
            stride=self.config.stride,
            fps=self.config.fps,
        )

    def _clip_number(self, index: int) -> int:
        """Return the number that determines a clip. With `num_clips`, numbers repeat."""
        if self.config.num_clips is None:
            return index
        return index % self.config.num_clips


def _image_ratio(videos: Sequence[Span], images: Sequence[Span], config: ClipConfig) -> float:
    """Return the fraction of steps that train on images: 1 if there are no videos."""
    if config.image_ratio > 0 and not images:
        remedy = "Add images to the data, or set it to 0."
        raise argument_error(
            "image_ratio", "0 for data without images", config.image_ratio, remedy, DataError
        )
    if not videos and images:
        return 1.0
    if images and config.image_ratio == 0:
        logger.warning("%d images are not trained on, because `image_ratio` is 0", len(images))
    return config.image_ratio


def draw_bucket(buckets: Sequence[Bucket], generator: torch.Generator) -> Bucket:
    """Draw a clip size, with probabilities proportional to the weights."""
    ends = list(accumulate(bucket.weight for bucket in buckets))
    point = float(torch.rand((), generator=generator, dtype=torch.float64)) * ends[-1]
    index = bisect_right(ends, point)
    return buckets[min(index, len(buckets) - 1)]  # the product may be rounded up to the end


class DecodedCache:
    """All frames of spans without damage at each training resolution, in memory that worker processes share.

    With zoom, frames keep the size of their file, so that clips are resized once.

    Raises:
        ValueError: the frames do not fit in memory.
    """

    def __init__(self, spans: Sequence[Span], config: ClipConfig) -> None:
        _check_memory(spans, config)
        self.config = config
        self._frames: dict[tuple[Span, int, int], Tensor] = {}  # by span, height and width
        for decoding in with_progress(_decodings(spans, config), "decoding videos"):
            span = decoding.span
            try:
                frames = read_clip(
                    span.info,
                    span.first_frame,
                    num_frames=span.num_frames,
                    size=(decoding.height, decoding.width),
                    max_pixels=config.max_pixels,
                    pixels=config.pixel_format,
                )
            except DecodeError as error:
                logger.warning("not cached: %s", error)
            else:
                self._frames[span, decoding.height, decoding.width] = frames

    def read(self, span: Span, start: int, bucket: Bucket) -> Tensor | None:
        """Return the frames of a clip, as a view if they are evenly spaced.

        Args:
            span: The span of the clip.
            start: Index of the clip's first frame in the video.
            bucket: The size of the clip.

        Returns:
            Frames `(T, H, W, C)`, or None if a frame of the span is damaged.
        """
        frames = self._frames.get((span, *_cached_size(span, bucket, self.config)))
        if frames is None:
            return None
        indices = ClipFrames.of(bucket, self.config).indices(span.info, start)
        if isinstance(indices, range):
            first = indices.start - span.first_frame
            return frames[first : first + len(indices) * indices.step : indices.step]
        return frames[[index - span.first_frame for index in indices]]


def _check_memory(spans: Sequence[Span], config: ClipConfig) -> None:
    memory = machine_memory()
    needed = num_cached_bytes(spans, config)
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by `torchrun`
    if num_processes * needed > _MAX_MEMORY_FRACTION * memory:
        contract = f"off if frames take more than {_MAX_MEMORY_FRACTION:.0%} of {memory / 2**30:.1f} GiB of memory"
        got = f"on for {needed / 2**30:.1f} GiB of decoded frames"
        if num_processes > 1:
            got += f" in each of {num_processes} processes"
        raise argument_error("cache", contract, got, "Turn it off, or train at a smaller size.")


def num_cached_bytes(spans: Sequence[Span], config: ClipConfig) -> int:
    """Return the size of the decoded frames of `spans` in bytes."""
    total = 0
    for span, height, width in _decodings(spans, config):
        bytes_per_value = 4 if span.info.is_array else config.bit_depth // 8
        total += span.num_frames * height * width * config.num_channels * bytes_per_value
    return total


class _Decoding(NamedTuple):
    """A span, and a height and width to decode it at."""

    span: Span
    height: int
    width: int


def _decodings(spans: Sequence[Span], config: ClipConfig) -> list[_Decoding]:
    """Return each span once at each size that clips are made from."""
    decodings: dict[_Decoding, None] = {}
    for bucket in config.train_buckets:
        for span in spans:
            decodings[_Decoding(span, *_cached_size(span, bucket, config))] = None
    return list(decodings)


def _cached_size(span: Span, bucket: Bucket, config: ClipConfig) -> tuple[int, int]:
    """Return the height and width at which the frames of a span are kept for clips of a size."""
    info = span.info
    if config.scale_jitter > 1:
        return info.height, info.width
    return bucket.decode_size(info.height, info.width, 1.0)
