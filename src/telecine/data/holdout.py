"""The part of a data set that is held out for validation: whole groups of files, or the end of each file."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from telecine.base.checks import argument_error, count
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.holdout_groups import group_spans, has_column
from telecine.data.source import Source, Span, resolve_source
from telecine.data.spacing import evenly_spaced
from telecine.data.table import SpanTable, distinct, first_of_each
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


@dataclass
class _Split:
    """Spans to train on, and held-out spans."""

    train: list[Span] = field(default_factory=list)
    held_out: list[Span] = field(default_factory=list)
    train_ends: dict[Source, int] = field(default_factory=dict)
    """Of each file with held-out frames, the first frame that is not trained on."""


def split_videos(spans: Sequence[Span], config: ClipConfig) -> tuple[list[Span], list[Span]]:
    """Split data into spans to train on and held-out spans. The two have no frame in common.

    Of ten videos or more, whole groups of them are held out, evenly spaced in their order, so that a folder sorted by
    subject is sampled across subjects. Files with the same content are in one group. Of fewer videos, the end of each
    is held out, and the frames of a clip before it are left out; one that is too short for that is used for training
    only. If all are, whole groups are held out. All held-out spans of videos are at least one clip long. Images are
    always whole.

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
    split = _Split()
    if videos:
        split = _split_videos(videos, config)
    if len(image_groups) < 2:
        return split.train + images, split.held_out
    if is_earlier:
        chosen = _choose_files(len(image_groups), config.val_fraction)
    else:
        chosen = choose_groups(_lengths(image_groups), config.val_fraction)
    for index, group in enumerate(image_groups):
        part = split.held_out if index in chosen else split.train
        part.extend(group)
    return split.train, split.held_out


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


def _split_videos(videos: Sequence[Span], config: ClipConfig) -> _Split:
    frames = ClipFrames.of(config.val_bucket, config)
    if not any(frames.fits(span) for span in videos):
        raise no_clip_error(videos, config)
    if config.holdout == _OLD_HOLDOUT:
        split = _split_as_earlier(videos, config.val_fraction, frames)
    else:
        split = _split_by_holdout(videos, config, frames)
    if split is None:
        contract = (
            "long enough for a training and a held-out clip, and for another one between them"
        )
        if config.fps is None:
            num_frames = frames.num_source_frames(videos[0].info)
            num_clips = 2 if config.holdout == _OLD_HOLDOUT else 3
            contract = f"long enough for a training and a held-out clip of {num_frames} frames, "
            contract += f"{num_clips * num_frames} together"
        remedy = f"Use fewer frames or a smaller stride, or {MIN_VIDEOS} videos or more."
        raise _too_short(contract, videos, remedy)
    # Train on spans that are too short for a validation clip, which may be long enough for clips of another size.
    for span in videos:
        if frames.fits(span):
            continue
        end = split.train_ends.get(resolve_source(span.info.source), span.last_frame + 1)
        if span.first_frame < end:
            split.train.append(replace(span, last_frame=min(span.last_frame, end - 1)))
    return split


def _split_by_holdout(
    videos: Sequence[Span], config: ClipConfig, frames: ClipFrames
) -> _Split | None:
    """Hold out whole groups of named groups or of many videos, else the end of each; None if all are too short."""
    groups: list[list[Span]] = []
    long_enough: list[list[Span]] = []
    for group in group_spans(videos, config.holdout):
        spans = [span for span in group if frames.fits(span)]
        if spans:
            groups.append(group)
            long_enough.append(spans)
    is_asked_for = asks_for_groups(config, len(groups))
    files = {resolve_source(span.info.source) for group in long_enough for span in group}
    are_many = len(files) >= MIN_VIDEOS
    prefers_groups = is_asked_for or are_many or has_column(videos, config.holdout)
    split: _Split | None = None
    if not prefers_groups or len(groups) < 2:
        split = _hold_out_ends(group_spans(videos, "file"), config.val_fraction, frames)
    if split is None and len(groups) > 1:
        chosen = choose_groups(_lengths(long_enough), config.val_fraction)
        split = _hold_out_groups(groups, chosen, frames)
    return split


def asks_for_groups(config: ClipConfig, num_groups: int) -> bool:
    """Return whether `config.holdout` names a column or folders.

    Args:
        config: The settings.
        num_groups: The number of groups with a video that is long enough.

    Raises:
        DataError: it does, but there are not two groups.
    """
    is_asked_for = config.holdout == "folder" or config.holdout.startswith("column:")
    if is_asked_for and num_groups < 2:
        contract = "a column or folders of two groups or more"
        remedy = "Use another column, folders or `auto`, or set `val_data`."
        raise argument_error("clips.holdout", contract, config.holdout, remedy, DataError)
    return is_asked_for


def _split_as_earlier(
    videos: Sequence[Span], val_fraction: float, frames: ClipFrames
) -> _Split | None:
    """Split videos as earlier versions did; None if none is long enough."""
    files = _group_by_file([span for span in videos if frames.fits(span)])
    if len(files) < MIN_VIDEOS:
        return _hold_out_ends(files, val_fraction, frames, has_gap=False)
    return _hold_out_groups(files, _choose_files(len(files), val_fraction), frames)


def _group_by_file(spans: Sequence[Span]) -> list[list[Span]]:
    """Return the spans of each file, in the order of its first span."""
    files: dict[Source, list[Span]] = {}
    for span in spans:
        files.setdefault(resolve_source(span.info.source), []).append(span)
    return list(files.values())


def _choose_files(num_files: int, val_fraction: float) -> set[int]:
    """Return the indices of files to hold out, evenly spaced, a fraction of their number."""
    return set(evenly_spaced(num_files, max(1, round(num_files * val_fraction))))


def _hold_out_groups(
    groups: Sequence[Sequence[Span]], chosen: Collection[int], frames: ClipFrames
) -> _Split:
    """Hold out whole groups.

    Args:
        groups: The spans of each group.
        chosen: The indices of the groups to hold out.
        frames: The frames of a validation clip. Spans that are too short for one are left out.
    """
    split = _Split()
    for index, group in enumerate(groups):
        long_enough = [span for span in group if frames.fits(span)]
        if index not in chosen:
            split.train.extend(long_enough)
            continue
        split.held_out.extend(long_enough)
        for span in group:
            split.train_ends[resolve_source(span.info.source)] = 0
    return split


def _hold_out_ends(
    files: Sequence[Sequence[Span]],
    val_fraction: float,
    frames: ClipFrames,
    *,
    has_gap: bool = True,
) -> _Split | None:
    """Hold out the end of each file that is long enough for a clip in each part; None if no file is.

    Args:
        files: The spans of each file, and of its copies.
        val_fraction: The fraction of frames to hold out.
        frames: The frames of a validation clip.
        has_gap: Whether the frames of one clip before the held-out ones are not used at all.
    """
    split = _Split()
    for file in files:
        spans = [span for span in file if frames.fits(span)]
        if not spans:
            continue
        numbers: set[int] = set()
        for span in spans:
            numbers.update(range(span.first_frame, span.last_frame + 1))
        last = max(spans, key=lambda span: span.last_frame)
        last_start = last.first_frame + frames.num_starts(last) - 1
        cut = min(last_start, last.last_frame + 1 - round(len(numbers) * val_fraction))
        gap = frames.num_source_frames(last.info) if has_gap else 0
        before = [replace(span, last_frame=min(span.last_frame, cut - gap - 1)) for span in spans]
        after = [replace(span, first_frame=max(span.first_frame, cut)) for span in spans]
        before = [span for span in before if frames.fits(span)]
        after = [span for span in after if frames.fits(span)]
        if not before:
            split.train.extend(spans)
            continue
        split.train.extend(before)
        split.held_out.extend(after)
        if after:
            train_end = min(span.first_frame for span in after) - gap
            for span in file:
                split.train_ends[resolve_source(span.info.source)] = train_end
    return split if split.held_out else None


def _lengths(groups: Sequence[Sequence[Span]]) -> list[int]:
    """Return the number of frames of each group."""
    return [sum(span.num_frames for span in group) for group in groups]


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
