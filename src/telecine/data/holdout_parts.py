"""Spans in two parts, one to train on and one that is held out: by whole groups, or by the end of each file."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from telecine.base.checks import argument_error
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.source import Source, Span, resolve_source
from telecine.settings import ClipConfig

MIN_VIDEOS = 10
"""With this many videos or more, whole groups of them are held out, instead of the end of each."""


def hold_out_groups(
    videos: Sequence[Span],
    groups: Sequence[Sequence[Span]],
    chosen: Collection[int],
    frames: ClipFrames,
) -> tuple[list[Span], list[Span]]:
    """Hold out whole groups.

    Args:
        videos: All spans. One that is too short for a validation clip is trained on, if its file is not held out: it
            may be long enough for clips of another size.
        groups: The spans of each group with one that is long enough.
        chosen: The indices of the groups to hold out.
        frames: The frames of a validation clip.

    Returns:
        The spans to train on, and the held-out spans.
    """
    train: list[Span] = []
    held_out: list[Span] = []
    held_out_files: set[Source] = set()
    for index, group in enumerate(groups):
        part = held_out if index in chosen else train
        part.extend(span for span in group if frames.fits(span))
        if index in chosen:
            held_out_files.update(resolve_source(span.info.source) for span in group)
    for span in videos:
        if not frames.fits(span) and resolve_source(span.info.source) not in held_out_files:
            train.append(span)
    return train, held_out


@dataclass(frozen=True)
class Cut:
    """A file that is trained on up to a frame, and whose end is held out."""

    train: list[Span]
    held_out: list[Span]
    train_end: int
    """The first frame that is not trained on."""


def cut_file(
    file: Sequence[Span], val_fraction: float, frames: ClipFrames, *, has_gap: bool = True
) -> Cut | None:
    """Return the two parts of a file; None if it is too short for a clip in each.

    Args:
        file: The spans of a file.
        val_fraction: The fraction of its frames to hold out.
        frames: The frames of a validation clip.
        has_gap: Whether the frames of one clip before the held-out ones are not used at all.
    """
    spans = [span for span in file if frames.fits(span)]
    if not spans:
        return None
    numbers: set[int] = set()
    for span in spans:
        numbers.update(range(span.first_frame, span.last_frame + 1))
    last = max(spans, key=lambda span: span.last_frame)
    last_start = last.first_frame + frames.num_starts(last) - 1
    first_held_out = min(last_start, last.last_frame + 1 - round(len(numbers) * val_fraction))
    gap = frames.num_source_frames(last.info) if has_gap else 0
    train = []
    held_out = []
    for span in spans:
        before = replace(span, last_frame=min(span.last_frame, first_held_out - gap - 1))
        if frames.fits(before):
            train.append(before)
        after = replace(span, first_frame=max(span.first_frame, first_held_out))
        if frames.fits(after):
            held_out.append(after)
    if not train:
        return None
    train_end = min(span.first_frame for span in held_out) - gap
    return Cut(train, held_out, train_end)


def hold_out_ends(
    videos: Sequence[Span],
    files: Sequence[Sequence[Span]],
    cuts: Sequence[Cut | None],
    frames: ClipFrames,
) -> tuple[list[Span], list[Span]]:
    """Hold out the end of each file that is long enough for a clip in each part.

    Args:
        videos: All spans. Of one that is too short for a validation clip, the frames before the end are trained on.
        files: The spans of each file, and of its copies.
        cuts: The two parts of each file, see `cut_file`.
        frames: The frames of a validation clip.

    Returns:
        The spans to train on, and the held-out spans.
    """
    train: list[Span] = []
    held_out: list[Span] = []
    train_ends: dict[Source, int] = {}  # of files with a held-out end
    for file, cut in zip(files, cuts, strict=True):
        if cut is None:
            train.extend(span for span in file if frames.fits(span))
            continue
        train.extend(cut.train)
        held_out.extend(cut.held_out)
        for span in file:
            train_ends[resolve_source(span.info.source)] = cut.train_end
    for span in videos:
        if frames.fits(span):
            continue
        last_frame = span.last_frame
        train_end = train_ends.get(resolve_source(span.info.source))
        if train_end is not None:
            last_frame = min(last_frame, train_end - 1)
        if span.first_frame <= last_frame:
            train.append(replace(span, last_frame=last_frame))
    return train, held_out


def no_image_error(num_groups: int) -> Exception:
    """Return the error of data without a video and with less than two groups of images."""
    got = "one image" if num_groups > 0 else "nothing"
    remedy = "Add some, or set `val_data`."
    return argument_error("data", "a video or two images", got, remedy, DataError)


def no_clip_error(videos: Sequence[Span], config: ClipConfig) -> Exception:
    """Return the error of videos without a clip to validate on."""
    frames = ClipFrames.of(config.val_bucket, config)
    remedy = "Use fewer frames or a smaller stride."
    if config.fps is not None:
        remedy = "Use fewer frames, or another `clips.fps`."
    contract = f"long enough for a {frames.describe()}, {frames.rule()}"
    return too_short_error(contract, videos, remedy)


def too_short_error(contract: str, spans: Sequence[Span], remedy: str) -> Exception:
    """Return the error of videos that are too short.

    Args:
        contract: How long a video must be.
        spans: The videos.
        remedy: What to do.
    """
    longest = max(spans, key=lambda span: span.num_frames)
    got = f"at most {longest.num_frames} frames, in {longest.info.source}"
    return argument_error("data", contract, got, remedy, DataError)
