"""The fixed validation clips, and training without the frames of `val_data`."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from telecine.base.checks import argument_error, check_count
from telecine.base.terminal import with_progress
from telecine.data.clip import Clip, ClipSpec, decode_clip, make_clip
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError, DecodeError
from telecine.data.hdr import log_hdr
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lazy.sorted_numbers import distinct
from telecine.data.source import Span, VideoInfo
from telecine.data.spacing import evenly_spaced
from telecine.data.span_table import SpanTable
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 16  # to find a held-out span with a clip


def leave_out(spans: SpanTable, held_out: SpanTable, *, copies: bool = True) -> SpanTable:
    """Return the parts of spans that are not held out; if none is left, warn and return all.

    Of estimated spans, all of a file with held-out frames is left out.

    Args:
        spans: The frames to train on.
        held_out: The frames to leave out, in any order, also overlapping.
        copies: Whether these frames of other files with the same content are left out, too.
    """
    identities = _identities(spans, copies)
    held_out_identities = _identities(held_out, copies)
    if spans.infos is None:
        is_held_out = np.zeros(len(spans), np.bool_)
        for numbers, held_out_numbers in zip(identities, held_out_identities, strict=True):
            is_held_out |= np.isin(numbers, held_out_numbers)
        kept = spans.take(~is_held_out)
    else:
        kept = _cut_out(spans, identities, held_out, held_out_identities)
    if len(kept) == 0:
        logger.warning("`val_data` has all of `data`: validation is on what is trained on")
        return spans
    num_frames = int(spans.num_frames.sum())
    num_removed = num_frames - int(kept.num_frames.sum())
    if num_removed > 0:
        text = "%d of %d frames are in `val_data`, and not trained on"
        logger.warning(text, num_removed, num_frames)
    return kept


def _identities(spans: SpanTable, copies: bool) -> list[NDArray[np.int64]]:
    """Return one or two numbers for each span, as columns: spans of one file have the first in common.

    Args:
        spans: The spans.
        copies: Whether there is a second one, which spans of files with the same content have in common.
    """
    files = distinct(spans.file)
    ids = spans.files.process_local_ids(files)[np.searchsorted(files, spans.file)]
    if not copies:
        return [ids]
    digests = spans.files.headers["digest"][spans.file]
    return [ids, np.where(digests == 0, ids, digests)]


def _cut_out(
    spans: SpanTable,
    identities: Sequence[NDArray[np.int64]],
    held_out: SpanTable,
    held_out_identities: Sequence[NDArray[np.int64]],
) -> SpanTable:
    """Return the parts of exact spans that are not held out, see `_identities`."""
    held_out_of: dict[int, list[Span]] = {}
    for numbers in held_out_identities:
        for span, number in zip(held_out.exact, numbers.tolist(), strict=True):
            held_out_of.setdefault(number, []).append(span)
    kept: list[tuple[int, Span]] = []
    for row, span in enumerate(spans.exact):
        parts = [span]
        for numbers in identities:
            for held_out_span in held_out_of.get(int(numbers[row]), []):
                parts = _remove(parts, held_out_span)
        kept.extend((row, part) for part in parts)
    return spans.cut(kept)


def _remove(spans: Sequence[Span], held_out: Span) -> list[Span]:
    """Return the parts of spans of one video before and after another span of it."""
    parts = []
    for span in spans:
        before = replace(span, last_frame=min(span.last_frame, held_out.first_frame - 1))
        after = replace(span, first_frame=max(span.first_frame, held_out.last_frame + 1))
        parts += [part for part in (before, after) if part.num_frames > 0]
    return parts


def read_validation_clips(
    spans: Sequence[Span], config: ClipConfig, max_clips: int, *, name: str = "data"
) -> list[Clip]:
    """Read the validation clips: the same in every call, with a centre crop and no flip.

    The clips are distributed over the spans, or over `max_clips` evenly spaced spans, and evenly spaced in each. They
    do not overlap, so there may be fewer. All have the validation size of `config`. Images are used if there are no
    videos, or if `config.image_ratio` is 1. Undecodable clips are logged and skipped.

    Args:
        spans: The held-out frames.
        config: The size of clips, and how they are read.
        max_clips: Largest number of clips, 1 or more.
        name: Name of the setting with the held-out data, for the error.

    Raises:
        DataError: there is no clip.
    """
    clips = list(iterate_validation_clips(spans, config, max_clips))
    if not clips:
        frames = ClipFrames.of(config.val_bucket, config)
        contract = f"held-out files with a decodable {frames.describe()}"
        got = "none"
        if spans:
            longest = max(spans, key=lambda span: span.num_frames)
            got = f"none; the longest has {longest.num_frames} frames, {longest.info.source}"
        raise argument_error(name, contract, got, "Use fewer frames, or add videos.", DataError)
    return clips


def index_validation_spans(
    spans: SpanTable, saved_index: SavedIndex, config: ClipConfig, max_clips: int
) -> list[Span]:
    """Index the files of the validation clips, see `read_validation_clips`, and return their spans.

    In place of a span without a clip, the next one that is not used is tried.

    Args:
        spans: The held-out frames, by the headers of their files.
        saved_index: Has or makes the indices of the files.
        config: The size of clips.
        max_clips: Largest number of clips.
    """
    bucket = config.val_bucket
    is_usable = ~spans.is_image
    if config.image_ratio == 1 or not is_usable.any():
        bucket = bucket.as_image()
        is_usable = spans.is_image
    frames = ClipFrames.of(bucket, config)
    rows = np.flatnonzero(is_usable & (spans.num_starts(frames) > 0))
    chosen = rows
    if len(rows) > max_clips:
        chosen = rows[evenly_spaced(len(rows), max_clips)]
    spare = np.setdiff1d(rows, chosen)
    indexed: dict[int, Span] = {}
    for row in with_progress(chosen.tolist(), "indexing held-out files"):
        candidate = row
        for _ in range(_MAX_ATTEMPTS):
            try:
                indexed[candidate] = spans.estimated(candidate).index(saved_index, frames)
                break
            except DecodeError as error:
                logger.warning("skipping a validation clip: %s", error)
            if len(spare) == 0:
                break
            place = int(np.searchsorted(spare, candidate)) % len(spare)
            candidate = int(spare[place])
            spare = np.delete(spare, place)
    in_order = [indexed[row] for row in sorted(indexed)]
    log_hdr([span.info for span in in_order], config)
    return in_order


def iterate_validation_clips(
    spans: Sequence[Span], config: ClipConfig, max_clips: int, *, file: VideoInfo | None = None
) -> Iterator[Clip]:
    """Yield the clips of `read_validation_clips` one by one, in constant memory; there may be none.

    Args:
        spans: The held-out frames.
        config: The size of clips, and how they are read.
        max_clips: Largest number of clips, 1 or more.
        file: A file with as many frames, from which the same frames are read. None: those of the spans.
    """
    check_count("max_clips", max_clips)
    has_videos = any(not span.info.is_image for span in spans)
    uses_videos = has_videos and config.image_ratio < 1
    bucket = config.val_bucket
    if not uses_videos:
        bucket = bucket.as_image()
    used = [span for span in spans if span.info.is_image != uses_videos]
    for span, start in _validation_starts(used, ClipFrames.of(bucket, config), max_clips):
        spec = ClipSpec(span, start, stride=config.stride, fps=config.fps)
        try:
            clip = make_clip(decode_clip(spec, bucket, config, file=file), spec, bucket)
        except DecodeError as error:
            logger.warning("skipping a validation clip: %s", error)
        else:
            yield clip


def _validation_starts(
    spans: Sequence[Span], frames: ClipFrames, max_clips: int
) -> list[tuple[Span, int]]:
    """Return the span of each validation clip, and the index of its first frame in the video."""
    spans = [span for span in spans if frames.fits(span)]
    if len(spans) > max_clips:
        spans = [spans[index] for index in evenly_spaced(len(spans), max_clips)]
    # Give a clip to each span one after the other, until there are enough clips or no span has room for another.
    rounds: list[tuple[int, int]] = []
    for index, span in enumerate(spans):
        capacity = max(1, span.num_frames // frames.num_source_frames(span.info))
        rounds.extend((number, index) for number in range(min(capacity, max_clips)))
    num_clips = Counter(index for _, index in sorted(rounds)[:max_clips])
    starts: list[tuple[Span, int]] = []
    for index, span in enumerate(spans):
        offsets = _spread_with_ends(frames.num_starts(span), num_clips[index])
        starts.extend((span, span.first_frame + offset) for offset in offsets)
    return starts


def _spread_with_ends(num_starts: int, count: int) -> list[int]:
    """Return `count` indices from 0 to `num_starts - 1`, both included; the middle one if `count` is 1."""
    if count == 1:
        return [(num_starts - 1) // 2]
    return [i * (num_starts - 1) // (count - 1) for i in range(count)]
