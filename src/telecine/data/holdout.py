"""The part of a data set that is held out for validation: whole groups of files, or the end of each file."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from telecine.base.checks import argument_error, count
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.holdout_groups import group_spans, has_column
from telecine.data.lazy.sorted_numbers import distinct, first_of_each
from telecine.data.lazy.span_table import SpanTable
from telecine.data.source import Source, Span, resolve_source
from telecine.data.spacing import evenly_spaced
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

# The value of `clips.holdout` of runs of earlier versions, which keep it when they resume: files alone, without groups
# and gaps.
_OLD_HOLDOUT = "earlier"
# With this many videos or more, whole groups of them are held out, instead of the end of each.
MIN_VIDEOS = 10
_MAX_FRACTION = 0.3  # of all frames; a larger held-out part is warned about
# Numbers of groups that are tried around the expected one, to come close to the fraction of frames.
_NUM_TRIED = 5
_NUM_NAMED = 5


def split_videos(spans: Sequence[Span], config: ClipConfig) -> tuple[list[Span], list[Span]]:
    """Split data into spans to train on and held-out spans. The two have no frame in common.

    Of ten videos or more, whole groups of them are held out, evenly spaced in their order, so that a folder sorted by
    subject is sampled across subjects. Files with the same content are in one group. Of fewer videos, the end of each
    is held out, and the frames of a clip before it are left out. A video that is too short for both parts is used for
    training only. If all videos are too short, whole groups are held out. All held-out spans of videos are at least one
    clip long. Images are always whole.

    Args:
        spans: The frames to split. Spans of one video may overlap.
        config: Its `val_fraction` is the fraction of the frames to hold out, its `holdout` says how files are grouped,
            and its `num_frames`, with `stride` or `fps`, how long a validation clip is.

    Returns:
        The spans to train on, and the held-out spans.

    Raises:
        DataError: no video is long enough for a clip, or for one in each part; there is only one image; or there is
            only one group of a column or of folders.
    """
    videos = [span for span in spans if not span.info.is_image]
    images = [span for span in spans if span.info.is_image]
    is_earlier = config.holdout == _OLD_HOLDOUT
    image_groups = _group_by_file(images) if is_earlier else group_spans(images, config.holdout)
    if not videos and len(image_groups) < 2:
        got = "one image" if image_groups else "nothing"
        raise argument_error(
            "data", "a video or two images", got, "Add some, or set `val_data`.", DataError
        )
    train: list[Span] = []
    held_out: list[Span] = []
    if videos:
        train, held_out = _split_videos(videos, config)
    if len(image_groups) < 2:
        return train + images, held_out
    chosen = _choose(image_groups, config)
    for index, group in enumerate(image_groups):
        part = held_out if index in chosen else train
        part.extend(group)
    return train, held_out


@dataclass(frozen=True)
class _Extent:
    """How many files and frames are held out, and which files are the first."""

    num_files: int
    num_all_files: int
    has_ends: bool  # whether other frames of these files are trained on
    are_images: bool
    num_frames: int
    num_all_frames: int
    first_files: list[Source]

    @classmethod
    def of(cls, train: Sequence[Span], held_out: Sequence[Span]) -> "_Extent":
        """Return that of spans, or of two parts of one table."""
        if isinstance(train, SpanTable) and isinstance(held_out, SpanTable):
            rows = distinct(held_out.file)
            first_places = first_of_each(held_out.file)
            is_trained_on = np.zeros(len(train.files), np.bool_)
            is_trained_on[train.file] = True
            num_common = int(is_trained_on[rows].sum())
            num_frames = int(held_out.num_frames.sum())
            return cls(
                num_files=len(rows),
                num_all_files=len(rows) + int(is_trained_on.sum()) - num_common,
                has_ends=num_common > 0,
                are_images=bool(held_out.is_image.all()),
                num_frames=num_frames,
                num_all_frames=num_frames + int(train.num_frames.sum()),
                first_files=[held_out[place].info.source for place in first_places[:_NUM_NAMED]],
            )
        train_files = {resolve_source(span.info.source) for span in train}
        files = {resolve_source(span.info.source): span.info for span in held_out}
        num_frames = sum(span.num_frames for span in held_out)
        return cls(
            num_files=len(files),
            num_all_files=len(train_files | files.keys()),
            has_ends=not train_files.isdisjoint(files),
            are_images=all(info.is_image for info in files.values()),
            num_frames=num_frames,
            num_all_frames=num_frames + sum(span.num_frames for span in train),
            first_files=list(files)[:_NUM_NAMED],
        )


def describe_held_out(train: Sequence[Span], held_out: Sequence[Span]) -> str:
    """Return how many files and frames are held out, and the names of the first files; for a console and a page."""
    extent = _Extent.of(train, held_out)
    kind = "image" if extent.are_images else "video"
    text = f"{extent.num_files} of {count(extent.num_all_files, kind)}"
    if extent.has_ends:
        text = f"the end of {text}"
    named = ", ".join(source.name for source in extent.first_files)
    if extent.num_files > _NUM_NAMED:
        named += f" and {extent.num_files - _NUM_NAMED} more"
    return f"{text}, {extent.num_frames} of {extent.num_all_frames} frames: {named}"


def warn_of_held_out(train: Sequence[Span], held_out: Sequence[Span], val_fraction: float) -> None:
    """Warn if one of several files is all that is held out, or if too much is.

    Args:
        train: The spans to train on.
        held_out: The held-out spans.
        val_fraction: The fraction that was asked for.
    """
    extent = _Extent.of(train, held_out)
    fraction = extent.num_frames / extent.num_all_frames
    remedy = "`val_data` names other files to validate on, `clips.holdout` other groups"
    if extent.num_files == 1 < extent.num_all_files:
        logger.warning(
            "one of %d files is all that is held out: %s; %s",
            extent.num_all_files,
            extent.first_files[0],
            remedy,
        )
    if fraction > max(_MAX_FRACTION, val_fraction):
        text = "%.0f %% of the frames are held out, %s; %s"
        logger.warning(text, 100 * fraction, describe_held_out(train, held_out), remedy)


def _split_videos(videos: Sequence[Span], config: ClipConfig) -> tuple[list[Span], list[Span]]:
    """Return spans of videos to train on and held-out spans, see `split_videos`."""
    frames = ClipFrames.of(config.val_bucket, config)
    if not any(frames.fits(span) for span in videos):
        raise no_clip_error(videos, config)
    groups: list[list[Span]] = []  # those with a span that is long enough
    long_enough: list[list[Span]] = []  # these spans of each
    for group in _groups(videos, config, frames):
        spans = [span for span in group if frames.fits(span)]
        if spans:
            groups.append(group)
            long_enough.append(spans)
    if _strategy(videos, long_enough, config, frames) == "ends":
        return _hold_out_ends(videos, config, frames)
    return _hold_out_groups(videos, groups, _choose(long_enough, config), frames)


def _groups(videos: Sequence[Span], config: ClipConfig, frames: ClipFrames) -> list[list[Span]]:
    """Return the spans of videos in groups that are held out together."""
    if config.holdout == _OLD_HOLDOUT:
        return _group_by_file([span for span in videos if frames.fits(span)])
    return group_spans(videos, config.holdout)


def _files(videos: Sequence[Span], config: ClipConfig, frames: ClipFrames) -> list[list[Span]]:
    """Return the spans of each video, and of its copies."""
    if config.holdout == _OLD_HOLDOUT:
        return _group_by_file([span for span in videos if frames.fits(span)])
    return group_spans(videos, "file")


def _strategy(
    videos: Sequence[Span],
    groups: Sequence[Sequence[Span]],
    config: ClipConfig,
    frames: ClipFrames,
) -> Literal["groups", "ends"]:
    """Return whether whole groups of videos are held out, or the end of each file.

    Groups of few files are held out, too, if no file is long enough for both parts.

    Args:
        videos: The frames to split.
        groups: Of each group with spans that are long enough for a validation clip, these spans.
        config: The settings.
        frames: The frames of a validation clip.

    Raises:
        DataError: The videos are too short, or there is only one group of a column or of folders.
    """
    is_earlier = config.holdout == _OLD_HOLDOUT
    num_files = len(groups)
    if not is_earlier:  # in earlier versions a file was a group
        files = {resolve_source(span.info.source) for group in groups for span in group}
        num_files = len(files)
    if prefers_groups(
        config,
        num_files=num_files,
        num_groups=len(groups),
        has_column=has_column(videos, config.holdout),
    ):
        return "groups"
    for file in _files(videos, config, frames):
        if _cut(file, config, frames) is not None:
            return "ends"
    if len(groups) > 1 and not is_earlier:
        return "groups"
    contract = "long enough for a training and a held-out clip, and for another one between them"
    if config.fps is None:
        num_frames = frames.num_source_frames(videos[0].info)
        num_clips = 2 if is_earlier else 3
        contract = f"long enough for a training and a held-out clip of {num_frames} frames, "
        contract += f"{num_clips * num_frames} together"
    remedy = f"Use fewer frames or a smaller stride, or {MIN_VIDEOS} videos or more."
    raise _too_short(contract, videos, remedy)


def prefers_groups(
    config: ClipConfig, *, num_files: int, num_groups: int, has_column: bool
) -> bool:
    """Return whether whole groups of videos are held out, even if the end of each is long enough.

    Args:
        config: The settings.
        num_files: The number of videos that are long enough for a validation clip.
        num_groups: The number of groups that have such a video.
        has_column: Whether a list says by a column what is held out together.

    Raises:
        DataError: `config.holdout` names a column or folders, but there are not two groups.
    """
    is_asked_for = config.holdout == "folder" or config.holdout.startswith("column:")
    if is_asked_for and num_groups < 2:
        contract = "a column or folders of two groups or more"
        remedy = "Use another column, folders or `auto`, or set `val_data`."
        raise argument_error("clips.holdout", contract, config.holdout, remedy, DataError)
    has_reason = is_asked_for or has_column or num_files >= MIN_VIDEOS
    return has_reason and num_groups > 1


def _group_by_file(spans: Sequence[Span]) -> list[list[Span]]:
    """Return the spans of each file, in the order of its first span."""
    files: dict[Source, list[Span]] = {}
    for span in spans:
        files.setdefault(resolve_source(span.info.source), []).append(span)
    return list(files.values())


def _choose(groups: Sequence[Sequence[Span]], config: ClipConfig) -> set[int]:
    """Return the indices of groups to hold out, evenly spaced; earlier versions count files instead of frames."""
    if config.holdout == _OLD_HOLDOUT:
        num_held_out = max(1, round(len(groups) * config.val_fraction))
        return set(evenly_spaced(len(groups), num_held_out))
    lengths = [sum(span.num_frames for span in group) for group in groups]
    return choose_groups(lengths, config.val_fraction)


def _hold_out_groups(
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


def _hold_out_ends(
    videos: Sequence[Span], config: ClipConfig, frames: ClipFrames
) -> tuple[list[Span], list[Span]]:
    """Hold out the end of each file that is long enough for a clip in each part.

    Args:
        videos: All spans. Of one that is too short for a validation clip, the frames before the end are trained on.
        config: The settings.
        frames: The frames of a validation clip.

    Returns:
        The spans to train on, and the held-out spans.
    """
    train: list[Span] = []
    held_out: list[Span] = []
    train_ends: dict[Source, int] = {}  # of files with a held-out end
    for file in _files(videos, config, frames):
        cut = _cut(file, config, frames)
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


@dataclass(frozen=True)
class _Cut:
    """A file that is trained on up to a frame, and whose end is held out."""

    train: list[Span]
    held_out: list[Span]
    train_end: int
    """The first frame that is not trained on."""


def _cut(file: Sequence[Span], config: ClipConfig, frames: ClipFrames) -> _Cut | None:
    """Return the two parts of a file; None if it is too short for a clip in each. See `_hold_out_ends`.

    The frames of one clip before the held-out ones are not used at all, unlike in earlier versions.
    """
    spans = [span for span in file if frames.fits(span)]
    if not spans:
        return None
    numbers: set[int] = set()
    for span in spans:
        numbers.update(range(span.first_frame, span.last_frame + 1))
    last = max(spans, key=lambda span: span.last_frame)
    last_start = last.first_frame + frames.num_starts(last) - 1
    first_held_out = min(
        last_start, last.last_frame + 1 - round(len(numbers) * config.val_fraction)
    )
    is_earlier = config.holdout == _OLD_HOLDOUT
    gap = 0 if is_earlier else frames.num_source_frames(last.info)
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
    return _Cut(train, held_out, train_end)


def choose_groups(lengths: Sequence[int], val_fraction: float) -> set[int]:
    """Return the indices of groups to hold out, evenly spaced, with a number of frames close to the fraction.

    Args:
        lengths: The number of frames of each group.
        val_fraction: The fraction of frames to hold out.
    """
    num_expected = max(1, round(len(lengths) * val_fraction))
    aim = val_fraction * sum(lengths)
    choices = []
    smallest = max(1, num_expected - _NUM_TRIED)
    largest = min(len(lengths) - 1, num_expected + _NUM_TRIED)
    for num_held_out in range(smallest, largest + 1):
        choices.append(evenly_spaced(len(lengths), num_held_out))
    errors = [abs(sum(lengths[index] for index in choice) - aim) for choice in choices]
    best = choices[errors.index(min(errors))]
    num_frames = sum(lengths[index] for index in best)
    errors_alone = [abs(length - aim) for length in lengths]
    is_too_large = num_frames > max(_MAX_FRACTION * sum(lengths), aim)
    if is_too_large and min(errors_alone) < min(errors):
        best = [errors_alone.index(min(errors_alone))]
    return set(best)


def no_clip_error(videos: Sequence[Span], config: ClipConfig) -> Exception:
    """Return the error of videos without a clip to validate on."""
    frames = ClipFrames.of(config.val_bucket, config)
    remedy = "Use fewer frames or a smaller stride."
    if config.fps is not None:
        remedy = "Use fewer frames, or another `clips.fps`."
    contract = f"long enough for a {frames.describe()}, {frames.rule()}"
    return _too_short(contract, videos, remedy)


def _too_short(contract: str, spans: Sequence[Span], remedy: str) -> Exception:
    longest = max(spans, key=lambda span: span.num_frames)
    got = f"at most {longest.num_frames} frames, in {longest.info.source}"
    return argument_error("data", contract, got, remedy, DataError)
