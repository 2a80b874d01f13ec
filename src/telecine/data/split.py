"""Which frames are trained on, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from telecine.data.errors import DataError
from telecine.data.info import VideoInfo
from telecine.data.source import Source, as_one_name
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
        """Number of frames; not above 0 where there are none."""
        return self.last_frame - self.first_frame + 1

    def num_starts(self, clip_span: int) -> int:
        """Return at how many positions a clip that reaches over `clip_span` frames can begin."""
        return max(0, self.num_frames - clip_span + 1)


def split_videos(spans: Sequence[Span], val_fraction: float, clip_span: int) -> tuple[list[Span], list[Span]]:
    """Divide the frames of videos into spans to train on and spans held out, which share no frame.

    Of ten videos or more, whole ones are held out, evenly spaced in the order given, so that a folder sorted by
    subject is sampled across subjects. Of fewer, the end of each is held out, at least one clip long; a video too
    short for a clip on both sides is trained on whole. Images are divided by themselves, and always whole.

    Args:
        spans: the frames that may be used; those of one video may overlap.
        val_fraction: share to hold out, above 0 and at most 0.5.
        clip_span: frames from the first to the last of a clip to validate on, `(num_frames - 1) * stride + 1`.

    Returns:
        Training spans, and held-out spans, of which those of videos are at least one clip long.

    Raises:
        DataError: no video is long enough for a clip, or none for one on both sides; or there is one image alone.
    """
    images, videos = ([span for span in spans if span.info.is_image == kind] for kind in (True, False))
    if not videos:
        return _split_images(images, val_fraction)
    train, held_out = _split_videos(videos, val_fraction, clip_span)
    if len(images) > 1:
        train_images, held_out_images = _hold_out_videos(_by_video(images), val_fraction)
        return train + train_images, held_out + held_out_images
    return train + images, held_out


def _split_images(images: Sequence[Span], val_fraction: float) -> tuple[list[Span], list[Span]]:
    if len(_by_video(images)) < 2:
        got = f"{len(_by_video(images))} of them"
        raise argument_error("data", "videos, or two images or more", got, "Add some, or set `val_data`.", DataError)
    return _hold_out_videos(_by_video(images), val_fraction)


def _split_videos(spans: Sequence[Span], val_fraction: float, clip_span: int) -> tuple[list[Span], list[Span]]:
    usable = [span for span in spans if span.num_frames >= clip_span]
    if not usable:
        raise _too_short(spans, clip_span)
    # Too short to validate on, but perhaps long enough for a clip of another size.
    short = [span for span in spans if span.num_frames < clip_span]
    videos = _by_video(usable)
    if len(videos) >= WHOLE_VIDEOS_FROM:
        train, held_out = _hold_out_videos(videos, val_fraction)
    else:
        train, held_out = _hold_out_ends(videos, val_fraction, clip_span)
    if not held_out:
        longest = max(usable, key=lambda span: span.num_frames)
        contract = (
            f"long enough for a training and a held-out clip of {clip_span} frames ({2 * clip_span} in one video)"
        )
        got = f"at most {longest.num_frames} frames, in {longest.info.path}"
        remedy = f"Ask for fewer frames or a smaller stride, or use {WHOLE_VIDEOS_FROM} videos or more."
        raise argument_error("data", contract, got, remedy, DataError)
    return train + _apart_from(held_out, short), held_out


def _by_video(spans: Sequence[Span]) -> list[list[Span]]:
    """Return the spans of each video together, in the order in which the videos come."""
    videos: dict[Source, list[Span]] = {}
    for span in spans:
        videos.setdefault(as_one_name(span.info.path), []).append(span)
    return list(videos.values())


def _apart_from(held_out: Sequence[Span], spans: Sequence[Span]) -> list[Span]:
    """Return the spans whose video is not held out, not even in part."""
    taken = {as_one_name(span.info.path) for span in held_out}
    return [span for span in spans if as_one_name(span.info.path) not in taken]


def whole_video(info: VideoInfo) -> Span:
    """Return a video from its first frame to its last."""
    return Span(info, 0, info.num_frames - 1)


def _too_short(spans: Sequence[Span], clip_span: int) -> Exception:
    longest = max(spans, key=lambda span: span.num_frames)
    contract = f"long enough for a clip: {clip_span} frames needed, (num_frames - 1) * stride + 1"
    got = f"at most {longest.num_frames}, in {longest.info.path}"
    return argument_error("data", contract, got, "Ask for fewer frames or a smaller stride.", DataError)


def _hold_out_videos(videos: Sequence[Sequence[Span]], fraction: float) -> tuple[list[Span], list[Span]]:
    num_held_out = max(1, round(len(videos) * fraction))
    chosen = {(2 * i + 1) * len(videos) // (2 * num_held_out) for i in range(num_held_out)}
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
        if any(span.num_frames >= clip_span for span in before):
            train += [span for span in before if span.num_frames >= clip_span]
            held_out += [span for span in after if span.num_frames >= clip_span]
        else:
            train += spans
    return train, held_out
