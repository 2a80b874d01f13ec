"""Random training clips, each a pure function of the seed, the step and the clip's index."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from telecine.base.checks import argument_error
from telecine.base.randomness import seed_of
from telecine.data.clip import Clip, ClipSpec, decode_clip, decoded_size, make_clip, resize_frames
from telecine.data.clip_frames import ClipFrames
from telecine.data.decoded_cache import DecodedCache
from telecine.data.errors import ChangedError, DataError, DecodeError
from telecine.data.fingerprint import Fingerprint
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.remote_read import changed_error
from telecine.data.source import RemotePath, Source, Span, VideoInfo
from telecine.data.span_pool import Position, SpanPool, build_pool
from telecine.data.span_table import EstimatedSpan, SpanTable
from telecine.settings import Bucket, ClipConfig

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 16
# Draws for one clip. Of a file that cannot be indexed, only the first draw takes time.
_MAX_DRAWS = 1000

Item: TypeAlias = tuple[int, int]  # the step, and the index of a clip in the sequence of all clips


@lru_cache(maxsize=8)  # clips are read about in their order, of several sizes
def epoch_order(seed: int, epoch: int, num_parts: int) -> Tensor:
    """Return the order in which an epoch draws the parts of the data, a permutation of their indices."""
    generator = torch.Generator().manual_seed(seed_of(seed, "epoch", epoch))
    return torch.randperm(num_parts, generator=generator)


class _Draw(NamedTuple):
    """A random position, and the crop and the flips of the clip there, see `ClipSpec`."""

    position: Position
    zoom: float
    top: float
    left: float
    flip: bool
    upside_down: bool
    transpose: bool


class ClipDataset(Dataset[Clip]):
    """An infinite sequence of random clips. Item `(step, index)` depends only on the spans, the settings and the seed.

    A resumed run therefore reads the same clips, with any number of workers and processes. The step determines the size
    of its clips and whether they are images, so that they can be batched; the index determines the rest. With
    `config.num_clips`, it counts modulo that number. `dataset[index]` is `dataset[index, index]`.

    All first frames of clips are equally likely, and so are all images, unless `config.weighting` is "files". With
    `config.order` "epochs", clips are drawn without repetition: each of as many clips as spans, or files, is drawn from
    another part of the data, in an order that depends on the seed and the number of the epoch. A clip
    that cannot be decoded is replaced by another draw, which is equally reproducible. Its file is logged once, by one
    of all worker processes. After 16 in a row, or 1000 of files without an index, reading raises a `DataError`.

    With a table of spans, a file and a position are drawn by the headers alone; the file is then indexed, and the
    position becomes a frame. So a clip does not depend on what was indexed before.

    Args:
        spans: Frames of videos, images, or both. If there are only images, all clips are images.
        config: If its `cache` is on, the constructor decodes all frames.
        seed: Determines all draws.
        saved_index: Has or makes the indices of the files of a table of spans; None for indexed spans.

    Raises:
        ValueError: the frames to cache do not fit in memory.
        DataError: no span is long enough for a size of clips, or `config.image_ratio` needs images.
    """

    def __init__(
        self,
        spans: Sequence[Span] | SpanTable,
        config: ClipConfig,
        *,
        seed: int = 0,
        saved_index: SavedIndex | None = None,
    ) -> None:
        table = SpanTable.of(spans)
        videos = np.flatnonzero(~table.is_image)
        images = np.flatnonzero(table.is_image)
        self.config = config
        self.seed = seed
        self.image_ratio = _image_ratio(len(videos), len(images), config)
        self._videos: dict[int, SpanPool] = {}  # by the number of frames of a clip
        self._images: SpanPool | None = None
        if self.image_ratio < 1:
            for bucket in config.train_buckets:
                if bucket.num_frames not in self._videos:
                    frames = ClipFrames.of(bucket, config)
                    self._videos[bucket.num_frames] = build_pool(
                        table, videos, frames, config.weighting
                    )
        if self.image_ratio > 0:
            self._images = build_pool(table, images, ClipFrames(1), config.weighting)
        is_used = np.zeros(len(table), np.bool_)
        for pool in self._videos.values():
            is_used[pool.rows] = True
        if self._images is not None:
            is_used[self._images.rows] = True
        self.spans = table.take(is_used)
        """The spans that clips are drawn from, in their order."""
        self.cache = DecodedCache(self.spans.exact, config) if config.cache else None
        self._saved_index = saved_index
        # In memory that worker processes share.
        self._has_named_hdr = torch.zeros((), dtype=torch.bool).share_memory_()
        self._is_logged = torch.zeros(len(table.files), dtype=torch.bool).share_memory_()
        self._versions: Tensor | None = None
        """Of each file at an address when it was first read; 0 before. None if a server was asked before training."""
        if table.infos is None and table.files.has_unknown_sizes:
            self._versions = torch.zeros(len(table.files), dtype=torch.int64).share_memory_()

    def __getitem__(self, item: int | Item) -> Clip:
        frames, spec, bucket = self.decode(item)
        return make_clip(frames, spec, bucket)

    def decode(self, item: int | Item) -> tuple[Tensor, ClipSpec, Bucket]:
        """Return the arguments of `make_clip` for an item: frames `(T, H, W, C)`, the spec and the size.

        Raises:
            DataError: 16 clips in a row cannot be decoded, or 1000 with those of files that cannot be indexed.
        """
        step, index = (item, item) if isinstance(item, int) else item
        pool, bucket = self._draw_pool(step)
        num_failures = 0
        num_draws = 0
        while num_failures < _MAX_ATTEMPTS and num_draws < _MAX_DRAWS:
            draw = self._draw(pool, index, attempt=num_draws)
            num_draws += 1
            is_indexed = False
            try:
                spec = self._spec_of(draw, bucket)
                is_indexed = True
                return self._read_frames(spec, bucket), spec, bucket
            except DecodeError as error:
                num_failures += is_indexed
                self._log_once(draw.position.file, error)
            except ChangedError:
                if self._saved_index is not None:
                    self._saved_index.forget_addresses()
                raise
        got = f"{num_draws} clips in a row that cannot be decoded"
        raise argument_error(
            "data", "decodable", got, "Remove the files named in the log.", DataError
        )

    def _read_frames(self, spec: ClipSpec, bucket: Bucket) -> Tensor:
        """Return the frames of a clip at the size before its crop, `(T, H, W, C)`."""
        frames = None
        if self.cache is not None:
            frames = self.cache.read(spec.span, spec.start, bucket)
        if frames is None:
            return decode_clip(spec, bucket, self.config)
        size = decoded_size(spec, bucket)
        if frames.shape[1:3] != size:
            return resize_frames(frames, size)
        return frames

    def _log_once(self, file: int, error: DecodeError) -> None:
        if not self._is_logged[file]:
            self._is_logged[file] = True
            logger.warning("replacing clips that cannot be decoded: %s", error)

    def _spec_of(self, draw: _Draw, bucket: Bucket) -> ClipSpec:
        """Return what was drawn by the exact index of its file: at the same fraction of the positions in the span.

        Raises:
            DecodeError: the file cannot be indexed, or is too short.
            ChangedError: it is at an address, and is not as it was for an earlier clip.
        """
        span, offset, num_positions, file = draw.position
        if isinstance(span, EstimatedSpan):
            assert self._saved_index is not None
            frames = ClipFrames.of(bucket, self.config)
            try:
                span = span.index(self._saved_index, frames)
            except DecodeError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    self._check_version(file, span.source, version=0)
                raise
            if isinstance(span.source, RemotePath):
                size, number = Fingerprint.of(span.source)
                self._check_version(file, span.source, version=size ^ number)
            self._name_hdr(span.info)
            offset = offset * frames.num_starts(span) // num_positions
        return ClipSpec(
            span,
            span.first_frame + offset,
            zoom=draw.zoom,
            top=draw.top,
            left=draw.left,
            flip=draw.flip,
            upside_down=draw.upside_down,
            transpose=draw.transpose,
            stride=self.config.stride,
            fps=self.config.fps,
        )

    def _check_version(self, file: int, source: Source, *, version: int) -> None:
        """Check that a file has the version that it had for earlier clips, if no server was asked before training.

        Args:
            file: Its row.
            source: Its name, for the error.
            version: The version; 0 if it does not exist.

        Raises:
            ChangedError: it has another one.
        """
        if self._versions is None:
            return
        earlier = int(self._versions[file])
        if earlier not in (0, version):
            raise changed_error(source)
        self._versions[file] = version

    def _name_hdr(self, info: VideoInfo) -> None:
        """Log the first video with a high dynamic range, unless such are converted."""
        if info.hdr == "" or self.config.hdr != "as_stored" or bool(self._has_named_hdr):
            return
        self._has_named_hdr.fill_(True)
        text = (
            "%s has a high dynamic range or wide colours (%s), which look grey as ordinary video; "
        )
        text += "`--clips.hdr tone_map` converts this one and others"
        logger.warning(text, info.source, info.hdr)

    def names_of(self, items: Sequence[Item]) -> list[str]:
        """Return the names of items `(step, index)` of one step. Clips of one name are equal."""
        first_step, _ = items[0]
        pool, bucket = self._draw_pool(first_step)
        kind = "image" if pool is self._images else "video"
        return [f"{kind}-{bucket}-{self._clip_number(index)}" for _, index in items]

    def spec_at(self, step: int, index: int) -> ClipSpec:
        """Return the frames, the crop and the flips of item `(step, index)`, before any replacement.

        Raises:
            DecodeError: the file has to be indexed first, and cannot be, or is too short.
        """
        pool, bucket = self._draw_pool(step)
        return self._spec_of(self._draw(pool, index, attempt=0), bucket)

    def source_at(self, step: int, index: int) -> str:
        """Return the file of item `(step, index)`, before any replacement."""
        pool, _ = self._draw_pool(step)
        return str(self._draw(pool, index, attempt=0).position.span.source)

    def _draw_pool(self, step: int) -> tuple[SpanPool, Bucket]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "step", step))
        bucket = draw_bucket(self.config.train_buckets, generator)
        is_image = (
            float(torch.rand((), generator=generator, dtype=torch.float64)) < self.image_ratio
        )
        if is_image and self._images is not None:
            return self._images, bucket.as_image()
        return self._videos[bucket.num_frames], bucket

    def _draw(self, pool: SpanPool, index: int, attempt: int) -> _Draw:
        # The order of the draws determines all clips.
        number = self._clip_number(index)
        generator = torch.Generator().manual_seed(seed_of(self.seed, number, attempt))
        part = None
        if self.config.order == "epochs" and attempt == 0:
            epoch, place = divmod(number, pool.num_parts)
            part = int(epoch_order(self.seed, epoch, pool.num_parts)[place])
        position = pool.draw(generator, part)
        numbers = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        zoom_number, top, left, flip_number = numbers
        # The side of the crop is uniform between 1 / scale_jitter of the picture's and all of it.
        scale_jitter = self.config.scale_jitter
        zoom = scale_jitter / (1.0 + zoom_number * (scale_jitter - 1.0))
        upside_down = False
        transpose = False
        if self.config.random_orientation:
            upside_down, transpose = (torch.rand(2, generator=generator) < 0.5).tolist()
        return _Draw(
            position,
            zoom=zoom,
            top=top,
            left=left,
            flip=self.config.random_flip and flip_number < 0.5,
            upside_down=upside_down,
            transpose=transpose,
        )

    def _clip_number(self, index: int) -> int:
        """Return the number that determines a clip. With `num_clips`, numbers repeat."""
        if self.config.num_clips is None:
            return index
        return index % self.config.num_clips


def _image_ratio(num_videos: int, num_images: int, config: ClipConfig) -> float:
    """Return the fraction of steps that train on images: 1 if there are no videos.

    Args:
        num_videos: The number of spans of videos.
        num_images: The number of spans of images.
        config: Its `image_ratio` is for data with both.
    """
    if config.image_ratio > 0 and num_images == 0:
        remedy = "Add images to the data, or set it to 0."
        raise argument_error(
            "image_ratio", "0 for data without images", config.image_ratio, remedy, DataError
        )
    if num_videos == 0 and num_images > 0:
        return 1.0
    if num_images > 0 and config.image_ratio == 0:
        logger.warning("%d images are not trained on, because `image_ratio` is 0", num_images)
    return config.image_ratio


def draw_bucket(buckets: Sequence[Bucket], generator: torch.Generator) -> Bucket:
    """Draw a clip size, with probabilities proportional to the weights."""
    ends = list(accumulate(bucket.weight for bucket in buckets))
    point = float(torch.rand((), generator=generator, dtype=torch.float64)) * ends[-1]
    index = bisect_right(ends, point)
    return buckets[min(index, len(buckets) - 1)]  # the product may be rounded up to the end
