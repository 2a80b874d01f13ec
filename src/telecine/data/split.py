"""Which frames are trained on, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from telecine.data.errors import DataError
from telecine.data.info import VideoInfo
from telecine.shapes import argument_error

# With fewer videos than this, a part of each is held out instead of whole ones.
WHOLE_VIDEOS_FROM = 10


@dataclass(frozen=True)
class Span:
    """A stretch of a video's frames."""

    info: VideoInfo
    """The video."""
    first_frame: int
    """Position of the first frame."""
    last_frame: int
    """Position of the last frame, which belongs to the stretch."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.last_frame - self.first_frame + 1

    def num_starts(self, clip_span: int) -> int:
        """Return at how many positions a clip that reaches over `clip_span` frames can begin."""
        return max(0, self.num_frames - clip_span + 1)


def split_videos(infos: Sequence[VideoInfo], val_fraction: float, clip_span: int) -> tuple[list[Span], list[Span]]:
    """Divide videos into spans to train on and spans held out, which share no frame.

    Of ten videos or more, whole ones are held out, evenly spaced in the order given, so that a folder sorted by
    subject is sampled across subjects. Of fewer, the end of each is held out, at least one clip long; a video too
    short for a clip on both sides is trained on whole.

    Args:
        infos: the indexed videos.
        val_fraction: share to hold out, above 0 and at most 0.5.
        clip_span: frames from a clip's first to its last, `(num_frames - 1) * stride + 1`.

    Returns:
        Training spans and held-out spans, each at least one clip long.

    Raises:
        DataError: no video is long enough for a clip, or none for one on both sides.
    """
    usable = [whole_video(info) for info in infos if info.num_frames >= clip_span]
    if not usable:
        raise _too_short(infos, clip_span)
    if len(usable) >= WHOLE_VIDEOS_FROM:
        return _hold_out_videos(usable, val_fraction)
    train, held_out = _hold_out_ends(usable, val_fraction, clip_span)
    if not held_out:
        longest = max(usable, key=lambda span: span.num_frames)
        contract = (
            f"long enough for a training and a held-out clip of {clip_span} frames ({2 * clip_span} in one video)"
        )
        got = f"at most {longest.num_frames} frames, in {longest.info.path}"
        remedy = f"Ask for fewer frames or a smaller stride, or use {WHOLE_VIDEOS_FROM} videos or more."
        raise argument_error("data", contract, got, remedy, DataError)
    return train, held_out


def whole_video(info: VideoInfo) -> Span:
    """Return a video from its first frame to its last."""
    return Span(info, 0, info.num_frames - 1)


def _too_short(infos: Sequence[VideoInfo], clip_span: int) -> Exception:
    longest = max(infos, key=lambda info: info.num_frames, default=None)
    contract = f"long enough for a clip: {clip_span} frames needed, (num_frames - 1) * stride + 1"
    got = f"at most {longest.num_frames}, in {longest.path}" if longest else "no video"
    return argument_error("data", contract, got, "Ask for fewer frames or a smaller stride.", DataError)


def _hold_out_videos(spans: Sequence[Span], fraction: float) -> tuple[list[Span], list[Span]]:
    num_held_out = max(1, round(len(spans) * fraction))
    chosen = {(2 * i + 1) * len(spans) // (2 * num_held_out) for i in range(num_held_out)}
    train = [span for i, span in enumerate(spans) if i not in chosen]
    return train, [span for i, span in enumerate(spans) if i in chosen]


def _hold_out_ends(spans: Sequence[Span], fraction: float, clip_span: int) -> tuple[list[Span], list[Span]]:
    train, held_out = [], []
    for span in spans:
        num_held_out = max(clip_span, round(span.num_frames * fraction))
        if span.num_frames - num_held_out < clip_span:
            train.append(span)
            continue
        cut = span.num_frames - num_held_out
        train.append(Span(span.info, 0, cut - 1))
        held_out.append(Span(span.info, cut, span.last_frame))
    return train, held_out
