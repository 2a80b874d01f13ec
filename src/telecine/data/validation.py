"""Held-out data: the frames held out from training, and the fixed validation clips."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from telecine.base.checks import argument_error, check_count
from telecine.data.clip import Clip, ClipSpec, decode_clip, make_clip
from telecine.data.errors import DataError, DecodeError
from telecine.data.source import Source, Span, resolve_source
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

# With this many videos or more, whole videos are held out, instead of the end of each.
_MIN_VIDEOS_TO_HOLD_OUT_WHOLE = 10


def split_videos(spans: Sequence[Span], val_fraction: float, clip_span: int) -> tuple[list[Span], list[Span]]:
    """Split data into spans to train on and held-out spans. The two have no frame in common.

    Of ten videos or more, whole videos are held out, evenly spaced in their order, so that a folder sorted by subject
    is sampled across subjects. Of fewer videos, the end of each is held out; one that is too short for a clip in each
    part is used for training only. All held-out spans of videos are at least one clip long. Images are always whole.

    Args:
        spans: The frames to split. Spans of one video may overlap.
        val_fraction: Fraction to hold out, above 0 and at most 0.5.
        clip_span: Frames from the first to the last frame of a validation clip, `(num_frames - 1) * stride + 1`.

    Returns:
        The spans to train on, and the held-out spans.

    Raises:
        DataError: no video is long enough for a clip, or for one in each part; or there is only one image.
    """
    videos = [span for span in spans if not span.info.is_image]
    images = [span for span in spans if span.info.is_image]
    image_files = _group_by_file(images)
    if not videos and len(image_files) < 2:
        got = "one image" if image_files else "nothing"
        raise argument_error("data", "a video or two images", got, "Add some, or set `val_data`.", DataError)
    train: list[Span] = []
    held_out: list[Span] = []
    if videos:
        train, held_out = _split_videos(videos, val_fraction, clip_span)
    if len(image_files) > 1:
        images, held_out_images = _hold_out_files(image_files, val_fraction)
        held_out += held_out_images
    return train + images, held_out


def without_held_out(spans: Sequence[Span], held_out: Sequence[Span]) -> list[Span]:
    """Return the parts of spans that are not held out; if none is left, warn and return all.

    Args:
        spans: The frames to train on.
        held_out: The frames to leave out, in any order, also overlapping.
    """
    held_out_of: dict[Source, list[Span]] = {}
    for file_spans in _group_by_file(held_out):
        held_out_of[resolve_source(file_spans[0].info.path)] = file_spans
    kept: list[Span] = []
    for span in spans:
        parts = [span]
        for held_out_span in held_out_of.get(resolve_source(span.info.path), []):
            parts = _remove(parts, held_out_span)
        kept += parts
    if not kept:
        logger.warning("`val_data` has all of `data`: validation is on what is trained on")
        return list(spans)
    num_frames = sum(span.num_frames for span in spans)
    num_removed = num_frames - sum(span.num_frames for span in kept)
    if num_removed > 0:
        logger.warning("%d of %d frames are in `val_data`, and not trained on", num_removed, num_frames)
    return kept


def _remove(spans: Sequence[Span], held_out: Span) -> list[Span]:
    """Return the parts of spans of one video before and after another span of it."""
    parts = []
    for span in spans:
        before = Span(span.info, span.first_frame, min(span.last_frame, held_out.first_frame - 1))
        after = Span(span.info, max(span.first_frame, held_out.last_frame + 1), span.last_frame)
        parts += [part for part in (before, after) if part.num_frames > 0]
    return parts


def _split_videos(spans: Sequence[Span], val_fraction: float, clip_span: int) -> tuple[list[Span], list[Span]]:
    long_enough = [span for span in spans if span.num_frames >= clip_span]
    # Too short for a validation clip, but perhaps long enough for a training clip of another size.
    short = [span for span in spans if span.num_frames < clip_span]
    if not long_enough:
        contract = f"long enough for a clip of {clip_span} frames, (num_frames - 1) * stride + 1"
        raise _too_short(contract, spans, "Use fewer frames or a smaller stride.")
    videos = _group_by_file(long_enough)
    holds_out_whole = len(videos) >= _MIN_VIDEOS_TO_HOLD_OUT_WHOLE
    if holds_out_whole:
        train, held_out = _hold_out_files(videos, val_fraction)
    else:
        train, held_out = _hold_out_ends(videos, val_fraction, clip_span)
    if not held_out:
        contract = f"long enough for a training and a held-out clip of {clip_span} frames, {2 * clip_span} together"
        remedy = f"Use fewer frames or a smaller stride, or {_MIN_VIDEOS_TO_HOLD_OUT_WHOLE} videos or more."
        raise _too_short(contract, long_enough, remedy)
    first_held_out: dict[Source, int] = {}  # 0 if all of the video is held out
    for span in held_out:
        path = resolve_source(span.info.path)
        first_frame = 0 if holds_out_whole else span.first_frame
        first_held_out[path] = min(first_frame, first_held_out.get(path, first_frame))
    for span in short:
        end = first_held_out.get(resolve_source(span.info.path), span.last_frame + 1)
        if span.first_frame < end:
            train.append(Span(span.info, span.first_frame, min(span.last_frame, end - 1)))
    return train, held_out


def _too_short(contract: str, spans: Sequence[Span], remedy: str) -> Exception:
    longest = max(spans, key=lambda span: span.num_frames)
    got = f"at most {longest.num_frames} frames, in {longest.info.path}"
    return argument_error("data", contract, got, remedy, DataError)


def _group_by_file(spans: Sequence[Span]) -> list[list[Span]]:
    files: dict[Source, list[Span]] = {}
    for span in spans:
        files.setdefault(resolve_source(span.info.path), []).append(span)
    return list(files.values())


def _hold_out_files(files: Sequence[Sequence[Span]], val_fraction: float) -> tuple[list[Span], list[Span]]:
    """Hold out all spans of some files, at least one, evenly spaced in their order."""
    num_held_out = max(1, round(len(files) * val_fraction))
    chosen = set(middles_of_parts(len(files), num_held_out))
    train: list[Span] = []
    held_out: list[Span] = []
    for index, spans in enumerate(files):
        if index in chosen:
            held_out += spans
        else:
            train += spans
    return train, held_out


def _hold_out_ends(
    videos: Sequence[Sequence[Span]], val_fraction: float, clip_span: int
) -> tuple[list[Span], list[Span]]:
    """Hold out the end of each video that is long enough for a clip in each part."""
    train: list[Span] = []
    held_out: list[Span] = []
    for spans in videos:
        frames: set[int] = set()
        for span in spans:
            frames.update(range(span.first_frame, span.last_frame + 1))
        num_held_out = max(clip_span, round(len(frames) * val_fraction))
        cut = max(span.last_frame for span in spans) + 1 - num_held_out
        before = [Span(span.info, span.first_frame, min(span.last_frame, cut - 1)) for span in spans]
        after = [Span(span.info, max(span.first_frame, cut), span.last_frame) for span in spans]
        long_enough = [span for span in before if span.num_frames >= clip_span]
        if long_enough:
            train += long_enough
            held_out += [span for span in after if span.num_frames >= clip_span]
        else:
            train += spans
    return train, held_out


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
        contract = f"held-out files with a decodable clip of {config.clip_span} frames"
        got = "none"
        if spans:
            longest = max(spans, key=lambda span: span.num_frames)
            got = f"none; the longest has {longest.num_frames} frames, {longest.info.path}"
        raise argument_error(name, contract, got, "Use fewer frames, or add videos.", DataError)
    return clips


def iterate_validation_clips(spans: Sequence[Span], config: ClipConfig, max_clips: int) -> Iterator[Clip]:
    """Yield the clips of `read_validation_clips` one by one, in constant memory; there may be none.

    Args:
        spans: The held-out frames.
        config: The size of clips, and how they are read.
        max_clips: Largest number of clips, 1 or more.
    """
    check_count("max_clips", max_clips)
    has_videos = any(not span.info.is_image for span in spans)
    uses_videos = has_videos and config.image_ratio < 1
    bucket = config.val_bucket
    if not uses_videos:
        bucket = bucket.as_image()
    used = [span for span in spans if span.info.is_image != uses_videos]
    for span, start in _validation_starts(used, config.span_of(bucket), max_clips):
        spec = ClipSpec(
            span,
            start,
            crop_scale=config.scale_jitter,
            top=0.5,
            left=0.5,
            flip=False,
            stride=config.stride,
        )
        try:
            clip = make_clip(decode_clip(spec, bucket, config), spec, bucket)
        except DecodeError as error:
            logger.warning("skipping a validation clip: %s", error)
        else:
            yield clip


def _validation_starts(spans: Sequence[Span], clip_span: int, max_clips: int) -> list[tuple[Span, int]]:
    """Return the span of each validation clip, and the index of its first frame in the video."""
    spans = [span for span in spans if span.num_starts(clip_span) > 0]
    if len(spans) > max_clips:
        spans = [spans[index] for index in middles_of_parts(len(spans), max_clips)]
    # Give a clip to each span in turn, until there are enough clips or no span has room for another.
    turns: list[tuple[int, int]] = []
    for index, span in enumerate(spans):
        capacity = min(span.num_frames // clip_span, max_clips)
        turns.extend((turn, index) for turn in range(capacity))
    num_clips = Counter(index for _, index in sorted(turns)[:max_clips])
    starts: list[tuple[Span, int]] = []
    for index, span in enumerate(spans):
        offsets = _spread_with_ends(span.num_starts(clip_span), num_clips[index])
        starts.extend((span, span.first_frame + offset) for offset in offsets)
    return starts


def middles_of_parts(total: int, count: int) -> list[int]:
    """Divide the indices from 0 to `total - 1` into `count` equal parts, and return the middles."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _spread_with_ends(num_starts: int, count: int) -> list[int]:
    """Return `count` indices from 0 to `num_starts - 1`, both included; the middle one if `count` is 1."""
    if count == 1:
        return [(num_starts - 1) // 2]
    return [i * (num_starts - 1) // (count - 1) for i in range(count)]
