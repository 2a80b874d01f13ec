"""Training clips as a pure function of (seed, index), and the clips for validation."""

from __future__ import annotations

import hashlib
import logging
import signal
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from telecine.data.cache import DecodedCache
from telecine.data.config import ClipConfig
from telecine.data.decode import read_clip
from telecine.data.errors import DataError, DecodeError
from telecine.data.split import Span
from telecine.shapes import argument_error

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 16


class Clip(TypedDict):
    """One item of a `ClipDataset`."""

    video: Tensor
    """float32 in [-1, 1], shape `(C, T, H, W)`."""
    source: str
    """The file it comes from."""
    start: int
    """Position of its first frame in that file."""


def video_from_bytes(frames: Tensor) -> Tensor:
    """Convert uint8 frames `(..., T, H, W, C)` to float32 video `(..., C, T, H, W)` in [-1, 1]."""
    if frames.dtype != torch.uint8 or frames.ndim < 4:
        raise argument_error("frames", "uint8 of shape (..., T, H, W, C)", frames, "Pass decoded frames as they are.")
    moved = frames.movedim(-1, -4).to(torch.float32, memory_format=torch.contiguous_format)
    return moved.div_(127.5).sub_(1.0)


def bytes_from_video(video: Tensor) -> Tensor:
    """Convert floating-point video `(..., C, T, H, W)` in [-1, 1] to uint8 frames `(..., T, H, W, C)`.

    Values are clamped and rounded, which undoes `video_from_bytes` exactly.
    """
    if not video.is_floating_point() or video.ndim < 4:
        raise argument_error("video", "floating point of shape (..., C, T, H, W)", video, "Pass [-1, 1] video.")
    scaled = video.detach().float().add(1.0).mul_(127.5).clamp_(0.0, 255.0).round_()
    return scaled.to(torch.uint8).movedim(-4, -1).contiguous()


@dataclass(frozen=True)
class _Draw:
    """One clip as it was drawn: where it is, and what is done to it."""

    span: Span
    start: int
    window: float
    """Side of the crop, as a multiple of the clip's, before it is resized to it."""
    top: float
    """Place of the crop between the top edge at 0 and the bottom edge at 1."""
    left: float
    flip: bool


class ClipDataset(Dataset[Clip]):
    """Random clips without end: item `index` depends on the spans, the settings, the seed and `index` alone.

    So a resumed run that goes on at index N sees what it would have seen, whatever the number of workers. Every
    position at which a clip can begin is equally likely. A long film among short clips therefore gets its share of
    the running time, and cutting it into files changes nothing.

    A clip that cannot be decoded is replaced by another draw, just as reproducible, and its file is logged once.

    Args:
        spans: the frames to draw from.
        config: the settings; with `cache`, the frames are decoded here.
        seed: another seed, another sequence of clips.

    Raises:
        DataError: no span is long enough for a clip.
    """

    def __init__(self, spans: Sequence[Span], config: ClipConfig, *, seed: int = 0) -> None:
        self.spans = [span for span in spans if span.num_starts(config.clip_span) > 0]
        if not self.spans:
            contract = f"at least one span of {config.clip_span} frames, (num_frames - 1) * stride + 1"
            remedy = "Ask for fewer frames or a smaller stride."
            raise argument_error("spans", contract, f"{len(spans)} shorter ones", remedy, DataError)
        self.config = config
        self.seed = seed
        self.cache = DecodedCache(self.spans, config) if config.cache else None
        self._ends = list(accumulate(span.num_starts(config.clip_span) for span in self.spans))
        self._logged: set[Path] = set()

    def __getitem__(self, index: int) -> Clip:
        for attempt in range(MAX_ATTEMPTS):
            draw = self._draw(index, attempt)
            frames = self._frames(draw.span, draw.start)
            if frames is not None:
                return _clip(draw.span, draw.start, _augment(frames, draw, self.config))
        got = f"{MAX_ATTEMPTS} draws in a row that are not"
        raise argument_error("data", "decodable", got, "Remove the files named in the log.", DataError)

    def _frames(self, span: Span, start: int) -> Tensor | None:
        try:
            return self.cache.read(span, start) if self.cache else _read(span, start, self.config)
        except DecodeError as error:
            self._log_once(span.info.path, error)
            return None

    def _draw(self, index: int, attempt: int) -> _Draw:
        generator = _generator(self.seed, index, attempt)
        position = int(torch.randint(self._ends[-1], (), generator=generator))
        window, top, left, flip = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        which = bisect_right(self._ends, position)
        span = self.spans[which]
        return _Draw(
            span=span,
            start=span.first_frame + position - (self._ends[which - 1] if which else 0),
            window=1.0 + window * (self.config.scale_jitter - 1.0),
            top=top,
            left=left,
            flip=self.config.random_flip and flip < 0.5,
        )

    def _log_once(self, path: Path, error: DecodeError) -> None:
        if path not in self._logged:
            self._logged.add(path)
            logger.warning("clips drawn from a broken part of a file are replaced: %s", error)


class IndexSampler(Sampler[int]):
    """The indices from `start` up to `stop`, in order: a `ClipDataset` is random by itself.

    A run resumed after N items passes `start=N`.
    """

    def __init__(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop:
            remedy = "`start` is the number of items already seen, `stop` that of the whole run."
            raise argument_error("start", f"from 0 to `stop` ({stop})", start, remedy)
        self._indices = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def clip_loader(dataset: ClipDataset, *, batch_size: int, start_step: int, num_steps: int) -> DataLoader[Clip]:
    """Return the batches of steps `start_step` to `num_steps` (not included), read by `config.num_workers` processes.

    Batches hold `video` `(B, C, T, H, W)`, `source` as a list, and `start` as a tensor.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=IndexSampler(start_step * batch_size, num_steps * batch_size),
        num_workers=dataset.config.num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_trainer,
        # A loader draws its workers' seeds when it starts; from a generator of its own, so that a resumed run, which
        # starts one more loader, still samples as the uninterrupted run does.
        generator=torch.Generator(),
    )


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Let the training process, which gets the same signal, end the update and write a checkpoint first.

    A worker ends when its loader does, or soon after the training process is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def iterate_validation_clips(spans: Sequence[Span], config: ClipConfig, max_clips: int) -> Iterator[Clip]:
    """Yield the clips of `validation_clips` one by one, in memory that does not depend on their number."""
    if max_clips < 1:
        raise argument_error("max_clips", "at least 1", max_clips, "Ask for one clip or more.")
    for span, start in _validation_starts(spans, config.clip_span, max_clips):
        clip = _validation_clip(span, start, config)
        if clip is not None:
            yield clip


def validation_clips(spans: Sequence[Span], config: ClipConfig, max_clips: int) -> list[Clip]:
    """Read the same clips every time: spread over the spans and evenly spaced in each, centre crop, no flip.

    Clips do not overlap, so there may be fewer than `max_clips`; of more spans than that, evenly spaced ones are
    used. A clip that cannot be decoded is logged and left out.

    Raises:
        DataError: none of the clips can be decoded, or no span is long enough.
    """
    clips = list(iterate_validation_clips(spans, config, max_clips))
    if not clips:
        contract = f"held-out videos with a decodable clip of {config.clip_span} frames"
        got = f"{len(spans)} spans without one"
        raise argument_error("data", contract, got, "Ask for fewer frames, or add videos.", DataError)
    return clips


def _validation_clip(span: Span, start: int, config: ClipConfig) -> Clip | None:
    try:
        frames = _read(span, start, config)
    except DecodeError as error:
        logger.warning("a validation clip is left out: %s", error)
        return None
    draw = _Draw(span, start, window=config.scale_jitter, top=0.5, left=0.5, flip=False)
    return _clip(span, start, _augment(frames, draw, config))


def _validation_starts(spans: Sequence[Span], clip_span: int, max_clips: int) -> list[tuple[Span, int]]:
    spans = [span for span in spans if span.num_starts(clip_span) > 0]
    if len(spans) > max_clips:
        spans = [spans[(2 * i + 1) * len(spans) // (2 * max_clips)] for i in range(max_clips)]
    counts = _shares([span.num_frames // clip_span for span in spans], max_clips)
    return [
        (span, span.first_frame + start)
        for span, count in zip(spans, counts, strict=True)
        for start in _evenly_spaced(span.num_starts(clip_span), count)
    ]


def _shares(room: Sequence[int], total: int) -> list[int]:
    """Deal out `total` one at a time in turn, none getting more than its room."""
    shares = [0] * len(room)
    while total > 0 and shares != list(room):
        for i in range(len(room)):
            if total > 0 and shares[i] < room[i]:
                shares[i] += 1
                total -= 1
    return shares


def _evenly_spaced(num_starts: int, count: int) -> list[int]:
    """Return `count` of the positions 0 to `num_starts - 1`: the middle for one, else from the first to the last."""
    if count == 1:
        return [(num_starts - 1) // 2]
    return [i * (num_starts - 1) // (count - 1) for i in range(count)]


def _read(span: Span, start: int, config: ClipConfig) -> Tensor:
    return read_clip(span.info, start, config.num_frames, config.stride, config.decode_size(span.info))


def _augment(frames: Tensor, draw: _Draw, config: ClipConfig) -> Tensor:
    """Crop, mirror and convert to `(C, T, H, W)` in [-1, 1]; resize only what was drawn larger than the clip."""
    height, width = (min(round(side * draw.window), limit) for side, limit in _sides(frames, config))
    top = round(draw.top * (frames.shape[1] - height))
    left = round(draw.left * (frames.shape[2] - width))
    frames = frames[:, top : top + height, left : left + width]
    video = video_from_bytes(frames.flip(2) if draw.flip else frames)
    size = (config.height, config.width)
    if (height, width) == size:
        return video
    resized = F.interpolate(video.transpose(0, 1), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.transpose(0, 1).contiguous()


def _sides(frames: Tensor, config: ClipConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    return (config.height, frames.shape[1]), (config.width, frames.shape[2])


def _clip(span: Span, start: int, video: Tensor) -> Clip:
    return {"video": video, "source": str(span.info.path), "start": start}


def _generator(seed: int, index: int, attempt: int) -> torch.Generator:
    """Return a generator that depends on all three numbers, and whose streams have nothing to do with each other."""
    digest = hashlib.blake2b(f"{seed}/{index}/{attempt}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
