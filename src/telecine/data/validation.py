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

    Raises:
        DataError: no video is long enough for a clip, or for one in each part; or there is only one image.
    """
    videos = [span for span in spans if not span.info.is_image]
    images = [span for span in spans if span.info.is_image]
    groups = _group_by_video(images)
    if not videos and len(groups) < 2:
        got = "one image" if groups else "nothing"
        raise argument_error("data", "a video or two images", got, "Add some, or set `val_data`.", DataError)
    train, held_out = _split_videos(videos, val_fraction, clip_span) if videos else ([], [])
    if len(groups) > 1:
        images, held_out_images = _hold_out_videos(groups, val_fraction)
        held_out = held_out + held_out_images
    return train + images, held_out


def without_held_out(spans: Sequence[Span], held_out: Sequence[Span]) -> list[Span]:
    """Return the parts of spans that are not held out; if none is left, warn and return all."""
    taken = {resolve_source(each[0].info.path): each for each in _group_by_video(held_out)}
    free = []
    for span in spans:
        parts = [span]
        for hole in taken.get(resolve_source(span.info.path), ()):
            parts = [part for each in parts for part in _without(each, hole)]
        free += parts
    num_frames, num_free = (sum(span.num_frames for span in each) for each in (spans, free))
    if not free:
        logger.warning("`val_data` has all of `data`: validation is on what is trained on")
    elif num_free < num_frames:
        logger.warning("%d of %d frames are in `val_data`, and not trained on", num_frames - num_free, num_frames)
    return free or list(spans)


def _without(span: Span, hole: Span) -> list[Span]:
    """Return the parts of a span before and after another one of the same video."""
    before = Span(span.info, span.first_frame, min(span.last_frame, hole.first_frame - 1))
    after = Span(span.info, max(span.first_frame, hole.last_frame + 1), span.last_frame)
    return [each for each in (before, after) if each.first_frame <= each.last_frame]


def _split_videos(spans: Sequence[Span], val_fraction: float, clip_span: int) -> tuple[list[Span], list[Span]]:
    usable = [span for span in spans if span.num_frames >= clip_span]
    if not usable:
        raise _too_short(f"long enough for a clip of {clip_span} frames, (num_frames - 1) * stride + 1", spans)
    # Too short for a validation clip, but perhaps long enough for a training clip of another size.
    short = [span for span in spans if span.num_frames < clip_span]
    videos = _group_by_video(usable)
    if is_whole := len(videos) >= _MIN_VIDEOS_TO_HOLD_OUT_WHOLE:
        train, held_out = _hold_out_videos(videos, val_fraction)
    else:
        train, held_out = _hold_out_ends(videos, val_fraction, clip_span)
    if not held_out:
        contract = f"long enough for a training and a held-out clip of {clip_span} frames, {2 * clip_span} together"
        raise _too_short(contract, usable, f", or {_MIN_VIDEOS_TO_HOLD_OUT_WHOLE} videos or more")
    # Of a short span, what is before the held-out end of its video; nothing if all of the video is held out.
    backwards = sorted(held_out, key=lambda span: -span.first_frame)
    ends = {resolve_source(span.info.path): 0 if is_whole else span.first_frame for span in backwards}
    for span in short:
        end = ends.get(resolve_source(span.info.path), span.last_frame + 1)
        train += [Span(span.info, span.first_frame, min(span.last_frame, end - 1))] if span.first_frame < end else []
    return train, held_out


def _too_short(contract: str, spans: Sequence[Span], alternative: str = "") -> Exception:
    longest = max(spans, key=lambda span: span.num_frames)
    got = f"at most {longest.num_frames} frames, in {longest.info.path}"
    remedy = f"Use fewer frames or a smaller stride{alternative}."
    return argument_error("data", contract, got, remedy, DataError)


def _group_by_video(spans: Sequence[Span]) -> list[list[Span]]:
    videos: dict[Source, list[Span]] = {}
    for span in spans:
        videos.setdefault(resolve_source(span.info.path), []).append(span)
    return list(videos.values())


def _hold_out_videos(videos: Sequence[Sequence[Span]], fraction: float) -> tuple[list[Span], list[Span]]:
    chosen = set(_middles(len(videos), max(1, round(len(videos) * fraction))))
    train = [span for i, spans in enumerate(videos) if i not in chosen for span in spans]
    return train, [span for i in sorted(chosen) for span in videos[i]]


def _hold_out_ends(videos: Sequence[Sequence[Span]], fraction: float, clip_span: int) -> tuple[list[Span], list[Span]]:
    train: list[Span] = []
    held_out: list[Span] = []
    for spans in videos:
        frames = set().union(*(range(span.first_frame, span.last_frame + 1) for span in spans))
        num_held_out = max(clip_span, round(len(frames) * fraction))
        cut = max(span.last_frame for span in spans) + 1 - num_held_out
        before = [Span(span.info, span.first_frame, min(span.last_frame, cut - 1)) for span in spans]
        after = [Span(span.info, max(span.first_frame, cut), span.last_frame) for span in spans]
        if long_enough := [span for span in before if span.num_frames >= clip_span]:
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
    videos, or if `config.image_ratio` is 1. Undecodable clips are logged and skipped. A `DataError`, if there is
    no clip, names the setting `name`.
    """
    clips = list(iterate_validation_clips(spans, config, max_clips))
    if not clips:
        contract = f"held-out files with a decodable clip of {config.clip_span} frames"
        longest = max(spans, key=lambda span: span.num_frames, default=None)
        got = f"none; the longest has {longest.num_frames} frames, {longest.info.path}" if longest else "none"
        raise argument_error(name, contract, got, "Use fewer frames, or add videos.", DataError)
    return clips


def iterate_validation_clips(spans: Sequence[Span], config: ClipConfig, max_clips: int) -> Iterator[Clip]:
    """Yield the clips of `read_validation_clips` one by one, in constant memory; there may be none."""
    check_count("max_clips", max_clips)
    uses_videos = config.image_ratio < 1 and any(not span.info.is_image for span in spans)
    bucket = config.val_bucket if uses_videos else config.val_bucket.as_image()
    used = [span for span in spans if span.info.is_image != uses_videos]
    for span, start in _validation_starts(used, config.span_of(bucket), max_clips):
        spec = ClipSpec(span, start, config.scale_jitter, top=0.5, left=0.5, flip=False, stride=config.stride)
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
        spans = [spans[i] for i in _middles(len(spans), max_clips)]
    capacities = [min(span.num_frames // clip_span, max_clips) for span in spans]
    turns = sorted((turn, i) for i, capacity in enumerate(capacities) for turn in range(capacity))
    counts = Counter(i for _, i in turns[:max_clips])
    return [
        (span, span.first_frame + start)
        for i, span in enumerate(spans)
        for start in _evenly_spaced(span.num_starts(clip_span), counts[i])
    ]


def _middles(total: int, count: int) -> list[int]:
    """Divide the indices from 0 to `total - 1` into `count` equal parts, and return the middles."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _evenly_spaced(num_starts: int, count: int) -> list[int]:
    """Return `count` indices from 0 to `num_starts - 1`, both included; the middle one if `count` is 1."""
    if count == 1:
        return [(num_starts - 1) // 2]
    return [i * (num_starts - 1) // (count - 1) for i in range(count)]
