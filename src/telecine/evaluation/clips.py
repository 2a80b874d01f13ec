"""Which clips of a set are measured, and reading one."""

from __future__ import annotations

from collections.abc import Sequence

from telecine.data import Clip, ClipConfig, Span, VideoInfo, iterate_validation_clips
from telecine.shapes import argument_error

PLACES = "clips without overlap from each video's first frame on, evenly spaced among all of them"


def plan_clips(infos: Sequence[VideoInfo], config: ClipConfig, max_clips: int) -> list[Span]:
    """Return up to `max_clips` places of clips, the same at every call: see `PLACES`.

    Raises:
        ValueError: `max_clips` is below 1, or no video is long enough for a clip.
    """
    if max_clips < 1:
        raise argument_error("max_clips", "at least 1", max_clips, "Ask for one clip or more.")
    check_length(infos, config)
    length = config.clip_span
    places = [
        Span(info, start, start + length - 1)
        for info in infos
        for start in range(0, info.num_frames - length + 1, length)
    ]
    count = min(max_clips, len(places))
    return [places[(2 * index + 1) * len(places) // (2 * count)] for index in range(count)]


def read_place(span: Span, config: ClipConfig) -> Clip | None:
    """Return the clip at a place, resized and cropped to the centre; None, and a log line, if it cannot be decoded."""
    return next(iterate_validation_clips([span], config, 1), None)


def check_length(infos: Sequence[VideoInfo], config: ClipConfig) -> None:
    """Raise a `ValueError` unless a video is long enough for a clip."""
    longest = max(infos, key=lambda info: info.num_frames)
    if longest.num_frames < config.clip_span:
        got = f"at most {longest.num_frames}, in {longest.path}"
        remedy = "Ask for fewer frames or a smaller stride."
        raise argument_error("data", f"videos of at least {config.clip_span} frames", got, remedy)
