"""Training clips as a pure function of the seed, the step, and the index of the clip."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import Dataset

from telecine.data.bucket import Bucket, draw_bucket
from telecine.data.cache import DecodedCache
from telecine.data.config import ClipConfig
from telecine.data.cut import Clip, Cut, finish, read_frames
from telecine.data.errors import DataError, DecodeError
from telecine.data.source import Source
from telecine.data.split import Span
from telecine.randomness import seed_of
from telecine.shapes import argument_error

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 16


class _Pool:
    """The spans that hold a clip of some length, and at which positions it can begin.

    Raises:
        DataError: there is none.
    """

    def __init__(self, spans: Sequence[Span], clip_span: int) -> None:
        self.spans = [span for span in spans if span.num_starts(clip_span) > 0]
        if not self.spans:
            contract = f"at least one span of {clip_span} frames, (num_frames - 1) * stride + 1"
            remedy = "Ask for fewer frames or a smaller stride."
            raise argument_error("spans", contract, f"{len(spans)} shorter ones", remedy, DataError)
        self._ends = list(accumulate(span.num_starts(clip_span) for span in self.spans))

    def draw(self, generator: torch.Generator) -> tuple[Span, int]:
        """Return a span, and the position in its video at which a clip begins; all positions are equally likely."""
        position = int(torch.randint(self._ends[-1], (), generator=generator))
        which = bisect_right(self._ends, position)
        span = self.spans[which]
        return span, span.first_frame + position - (self._ends[which - 1] if which else 0)


class ClipDataset(Dataset[Clip]):
    """Random clips without end: item `(step, index)` depends on the spans, the settings, the seed and these alone.

    So a run that goes on at step N sees what it would have seen, whatever the number of workers and of processes.
    The step decides which size its clips have, and whether they are images, so that they go into one batch; the index
    decides the rest. `dataset[index]` stands for `dataset[index, index]`, as in steps of one clip.

    Every position at which a clip can begin is equally likely. A long film among short clips therefore gets its share
    of the running time, and cutting it into files changes nothing. All images are equally likely.

    A clip that cannot be decoded is replaced by another draw, just as reproducible, and its file is logged once.

    Args:
        spans: the frames to draw from, of videos, images, or both. Where there are images alone, all clips are images.
        config: the settings; with `cache`, the frames are decoded here.
        seed: another seed, another sequence of clips.

    Raises:
        DataError: no span is long enough for a clip of one of the sizes, or there is no image though
            `config.image_ratio` asks for some.
    """

    def __init__(self, spans: Sequence[Span], config: ClipConfig, *, seed: int = 0) -> None:
        videos, images = ([span for span in spans if span.info.is_image == kind] for kind in (False, True))
        self.config = config
        self.seed = seed
        self.image_ratio = _image_ratio(videos, images, config)
        lengths = {bucket.num_frames: config.span_of(bucket) for bucket in config.sizes if self.image_ratio < 1}
        self._videos = {num_frames: _Pool(videos, clip_span) for num_frames, clip_span in lengths.items()}
        self._images = _Pool(images, clip_span=1) if self.image_ratio > 0 else None
        self.spans = self._used_spans(spans)
        self.cache = DecodedCache(self.spans, config) if config.cache else None
        self._logged: set[Source] = set()

    def __getitem__(self, item: int | tuple[int, int]) -> Clip:
        step, index = (item, item) if isinstance(item, int) else item
        pool, bucket = self._choose(step)
        for attempt in range(MAX_ATTEMPTS):
            cut = self._draw(pool, index, attempt)
            frames = self._frames(cut, bucket)
            if frames is not None:
                return finish(frames, cut, bucket)
        got = f"{MAX_ATTEMPTS} draws in a row that are not"
        raise argument_error("data", "decodable", got, "Remove the files named in the log.", DataError)

    def bucket_of(self, step: int) -> Bucket:
        """Return the size of all clips of a step; that of images has one frame."""
        return self._choose(step)[1]

    def source_of(self, step: int, index: int) -> str:
        """Return the file from which item `(step, index)` is read, unless it is broken."""
        return str(self._draw(self._choose(step)[0], index, attempt=0).span.info.path)

    def _choose(self, step: int) -> tuple[_Pool, Bucket]:
        generator = _generator(self.seed, "step", step)
        bucket = draw_bucket(self.config.sizes, generator)
        is_image = float(torch.rand((), generator=generator, dtype=torch.float64)) < self.image_ratio
        if is_image and self._images is not None:
            return self._images, bucket.still()
        return self._videos[bucket.num_frames], bucket

    def _used_spans(self, spans: Sequence[Span]) -> list[Span]:
        pools = [*self._videos.values(), *([self._images] if self._images else [])]
        used = {id(span) for pool in pools for span in pool.spans}
        return [span for span in spans if id(span) in used]

    def _frames(self, cut: Cut, bucket: Bucket) -> Tensor | None:
        try:
            return self.cache.read(cut.span, cut.start, bucket) if self.cache else read_frames(cut, bucket, self.config)
        except DecodeError as error:
            self._log_once(cut.span.info.path, error)
            return None

    def _draw(self, pool: _Pool, index: int, attempt: int) -> Cut:
        generator = _generator(self.seed, index, attempt)
        span, start = pool.draw(generator)
        window, top, left, flip = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        return Cut(
            span=span,
            start=start,
            window=1.0 + window * (self.config.scale_jitter - 1.0),
            top=top,
            left=left,
            flip=self.config.random_flip and flip < 0.5,
        )

    def _log_once(self, path: Source, error: DecodeError) -> None:
        if path not in self._logged:
            self._logged.add(path)
            logger.warning("clips drawn from a broken part of a file are replaced: %s", error)


def _image_ratio(videos: Sequence[Span], images: Sequence[Span], config: ClipConfig) -> float:
    """Return the share of steps with images: all where there is nothing else."""
    if config.image_ratio > 0 and not images:
        remedy = "Add images to the data, or set it to 0."
        raise argument_error("image_ratio", "0 for data without images", config.image_ratio, remedy, DataError)
    if not videos and images:
        return 1.0
    if images and config.image_ratio == 0:
        logger.warning("%d images are not trained on, because `image_ratio` is 0", len(images))
    return config.image_ratio


def _generator(*names: int | str) -> torch.Generator:
    """Return a generator that depends on all names, and whose streams have nothing to do with each other."""
    return torch.Generator().manual_seed(seed_of(*names))
