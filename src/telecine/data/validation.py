"""The clips to validate on: the same ones every time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from telecine.data.bucket import Bucket
from telecine.data.config import ClipConfig
from telecine.data.cut import Clip, Cut, finish, read_frames
from telecine.data.errors import DataError, DecodeError
from telecine.data.split import Span
from telecine.shapes import argument_error

logger = logging.getLogger(__name__)


def iterate_validation_clips(spans: Sequence[Span], config: ClipConfig, max_clips: int) -> Iterator[Clip]:
    """Yield the clips of `validation_clips` one by one, in memory that does not depend on their number."""
    if max_clips < 1:
        raise argument_error("max_clips", "at least 1", max_clips, "Ask for one clip or more.")
    used, bucket = _kind(spans, config)
    for span, start in _validation_starts(used, config.span_of(bucket), max_clips):
        clip = _validation_clip(span, start, bucket, config)
        if clip is not None:
            yield clip


def validation_clips(spans: Sequence[Span], config: ClipConfig, max_clips: int) -> list[Clip]:
    """Read the same clips every time: spread over the spans and evenly spaced in each, centre crop, no flip.

    All have the main size of `config`. Images are used where there are no videos, or `config.image_ratio` is 1. Clips
    do not overlap, so there may be fewer than `max_clips`; of more spans than that, evenly spaced ones are used. A
    clip that cannot be decoded is logged and left out.

    Raises:
        DataError: none of the clips can be decoded, or no span is long enough.
    """
    clips = list(iterate_validation_clips(spans, config, max_clips))
    if not clips:
        contract = f"held-out videos with a decodable clip of {config.clip_span} frames"
        got = f"{len(spans)} spans without one"
        raise argument_error("data", contract, got, "Ask for fewer frames, or add videos.", DataError)
    return clips


def _kind(spans: Sequence[Span], config: ClipConfig) -> tuple[list[Span], Bucket]:
    """Return the videos among the spans, or where they are not trained on the images, and the size of clips."""
    videos = [span for span in spans if not span.info.is_image]
    if videos and config.image_ratio < 1:
        return videos, config.main
    return [span for span in spans if span.info.is_image], config.main.still()


def _validation_clip(span: Span, start: int, bucket: Bucket, config: ClipConfig) -> Clip | None:
    cut = Cut(span, start, window=config.scale_jitter, top=0.5, left=0.5, flip=False)
    try:
        return finish(read_frames(cut, bucket, config), cut, bucket)
    except DecodeError as error:
        logger.warning("a validation clip is left out: %s", error)
        return None


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
