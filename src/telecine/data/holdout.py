"""The part of a data set that is held out for validation: whole groups of files, or the end of each file."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import NamedTuple

from telecine.base.checks import argument_error, count
from telecine.data.errors import DataError
from telecine.data.source import Source, Span, resolve_source

logger = logging.getLogger(__name__)

# With this many videos or more, whole groups of them are held out, instead of the end of each.
_MIN_VIDEOS = 10
# The way in which earlier versions split, without groups and gaps, which their runs keep.
_EARLIER = "earlier"
# Names are grouped by the shortest beginning with this many groups or more, of this many files on average or more. If
# there is none, the next line holds.
_NAME_GROUPS = ((10, 2), (4, 2), (10, 1))
# Counts of groups that are tried around the expected one, to come close to the fraction of frames.
_NUM_TRIED = 5
_MAX_FRACTION = 0.3  # more is warned about
_NUM_NAMED = 5
_WORDS = re.compile(r"\d+|[^\W\d_]+")  # the parts of a name: numbers, and letters between them


def split_videos(
    spans: Sequence[Span], val_fraction: float, clip_span: int, holdout: str = "auto"
) -> tuple[list[Span], list[Span]]:
    """Split data into spans to train on and held-out spans. The two have no frame in common.

    Of ten videos or more, whole groups of them are held out, evenly spaced in their order, so that a folder sorted by
    subject is sampled across subjects. Files with the same content are in one group. Of fewer videos, the end of each
    is held out, and the frames of a clip before it are left out; one that is too short for that is used for training
    only. If all are, whole groups are held out. All held-out spans of videos are at least one clip long. Images are
    always whole.

    Args:
        spans: The frames to split. Spans of one video may overlap.
        val_fraction: Fraction of the frames to hold out, above 0 and at most 0.5.
        clip_span: Frames from the first to the last frame of a validation clip, `(num_frames - 1) * stride + 1`.
        holdout: How files are grouped, see `ClipConfig.holdout`.

    Returns:
        The spans to train on, and the held-out spans.

    Raises:
        DataError: no video is long enough for a clip, or for one in each part; there is only one image; or there is
            only one group of a column or of folders.
    """
    videos = [span for span in spans if not span.info.is_image]
    images = [span for span in spans if span.info.is_image]
    image_groups = _group(images, holdout)
    if not videos and len(image_groups) < 2:
        got = "one image" if image_groups else "nothing"
        raise argument_error(
            "data", "a video or two images", got, "Add some, or set `val_data`.", DataError
        )
    train: list[Span] = []
    held_out: list[Span] = []
    if videos:
        train, held_out = _split_videos(videos, val_fraction, clip_span, holdout)
    if len(image_groups) > 1:
        chosen = _choose_groups(image_groups, val_fraction, holdout)
        images = []
        for index, group in enumerate(image_groups):
            if index in chosen:
                held_out += group
            else:
                images += group
    return train + images, held_out


def describe_held_out(train: Sequence[Span], held_out: Sequence[Span]) -> str:
    """Return how many files and frames are held out, and the names of the first files; for a console and a page."""
    train_files = {resolve_source(span.info.source) for span in train}
    files = {resolve_source(span.info.source): span.info for span in held_out}
    num_frames = sum(span.num_frames for span in held_out)
    total = num_frames + sum(span.num_frames for span in train)
    kind = "image" if all(info.is_image for info in files.values()) else "video"
    text = f"{len(files)} of {count(len(train_files | files.keys()), kind)}"
    if train_files & files.keys():
        text = f"the end of {text}"
    names = [source.name for source in files]
    named = ", ".join(names[:_NUM_NAMED])
    if len(names) > _NUM_NAMED:
        named += f" and {len(names) - _NUM_NAMED} more"
    return f"{text}, {num_frames} of {total} frames: {named}"


def warn_of_held_out(train: Sequence[Span], held_out: Sequence[Span], val_fraction: float) -> None:
    """Warn if one of several files is all that is held out, or if too much is.

    Args:
        train: The spans to train on.
        held_out: The held-out spans.
        val_fraction: The fraction that was asked for.
    """
    files = {resolve_source(span.info.source) for span in held_out}
    all_files = files | {resolve_source(span.info.source) for span in train}
    num_frames = sum(span.num_frames for span in held_out)
    fraction = num_frames / (num_frames + sum(span.num_frames for span in train))
    remedy = "`val_data` names other files to validate on, `clips.holdout` other groups"
    if len(files) == 1 < len(all_files):
        (file,) = files
        logger.warning(
            "one of %d files is all that is held out: %s; %s", len(all_files), file, remedy
        )
    if fraction > max(_MAX_FRACTION, val_fraction):
        text = "%.0f %% of the frames are held out, %s; %s"
        logger.warning(text, 100 * fraction, describe_held_out(train, held_out), remedy)


def _split_videos(
    spans: Sequence[Span], val_fraction: float, clip_span: int, holdout: str
) -> tuple[list[Span], list[Span]]:
    long_enough = [span for span in spans if span.num_frames >= clip_span]
    if not long_enough:
        contract = f"long enough for a clip of {clip_span} frames, (num_frames - 1) * stride + 1"
        raise _too_short(contract, spans, "Use fewer frames or a smaller stride.")
    groups = []
    grouped = (
        long_enough if holdout == _EARLIER else spans
    )  # the order of groups is that of their first spans
    for group in _group(grouped, holdout):
        if any(span.num_frames >= clip_span for span in group):
            groups.append(group)
    is_asked_for = holdout == "folder" or holdout.startswith("column:")
    if is_asked_for and len(groups) < 2:
        remedy = "Use another column, folders or `auto`, or set `val_data`."
        raise argument_error(
            "clips.holdout", "a column or folders of two groups or more", holdout, remedy, DataError
        )
    num_videos = len({resolve_source(span.info.source) for span in long_enough})
    has_column = holdout == "auto" and any(span.group for span in spans)
    has_enough = is_asked_for or has_column or num_videos >= _MIN_VIDEOS
    gap = 0 if holdout == _EARLIER else clip_span
    split = None
    if not has_enough or len(groups) < 2:
        files = _group(grouped, _EARLIER if holdout == _EARLIER else "file")
        split = _hold_out_ends(files, val_fraction, clip_span, gap)
    if split is None and len(groups) > 1 and (has_enough or holdout != _EARLIER):
        split = _hold_out_groups(groups, val_fraction, clip_span, holdout)
    if split is None:
        contract = f"long enough for a training and a held-out clip of {clip_span} frames, "
        contract += f"{2 * clip_span + gap} together"
        remedy = f"Use fewer frames or a smaller stride, or {_MIN_VIDEOS} videos or more."
        raise _too_short(contract, long_enough, remedy)
    # Spans that are too short for a validation clip are perhaps long enough for a training clip of another size.
    train = split.train
    for span in spans:
        end = split.limits.get(resolve_source(span.info.source), span.last_frame + 1)
        if span.num_frames < clip_span and span.first_frame < end:
            train.append(replace(span, last_frame=min(span.last_frame, end - 1)))
    return train, split.held_out


class _Split(NamedTuple):
    """Spans of at least one clip, and where frames that are left out begin in each file with held-out frames."""

    train: list[Span]
    held_out: list[Span]
    limits: dict[Source, int]


def _hold_out_groups(
    groups: Sequence[Sequence[Span]], val_fraction: float, clip_span: int, holdout: str
) -> _Split:
    """Hold out whole groups of videos."""
    long_enough = [[span for span in group if span.num_frames >= clip_span] for group in groups]
    chosen = _choose_groups(long_enough, val_fraction, holdout)
    split = _Split([], [], {})
    for index, group in enumerate(groups):
        if index not in chosen:
            split.train.extend(long_enough[index])
            continue
        split.held_out.extend(long_enough[index])
        for span in group:
            split.limits[resolve_source(span.info.source)] = 0
    return split


def _hold_out_ends(
    files: Sequence[Sequence[Span]], val_fraction: float, clip_span: int, gap: int
) -> _Split | None:
    """Hold out the end of each file that is long enough for a clip in each part; None if no file is.

    Args:
        files: The spans of each file, and of its copies.
        val_fraction: The fraction of frames to hold out.
        clip_span: The frames of a clip.
        gap: The number of frames before the held-out ones that are left out.
    """
    split = _Split([], [], {})
    for file in files:
        spans = [span for span in file if span.num_frames >= clip_span]
        if not spans:
            continue
        frames: set[int] = set()
        for span in spans:
            frames.update(range(span.first_frame, span.last_frame + 1))
        num_held_out = max(clip_span, round(len(frames) * val_fraction))
        cut = max(span.last_frame for span in spans) + 1 - num_held_out
        before = [replace(span, last_frame=min(span.last_frame, cut - gap - 1)) for span in spans]
        after = [replace(span, first_frame=max(span.first_frame, cut)) for span in spans]
        before = [span for span in before if span.num_frames >= clip_span]
        after = [span for span in after if span.num_frames >= clip_span]
        if not before:
            split.train.extend(spans)
            continue
        split.train.extend(before)
        split.held_out.extend(after)
        if after:
            limit = min(span.first_frame for span in after) - gap
            for span in file:
                split.limits[resolve_source(span.info.source)] = limit
    return split if split.held_out else None


def _choose_groups(groups: Sequence[Sequence[Span]], val_fraction: float, holdout: str) -> set[int]:
    """Return the indices of groups to hold out, evenly spaced, with a number of frames close to the fraction."""
    num_expected = max(1, round(len(groups) * val_fraction))
    if holdout == _EARLIER:
        return set(middles(len(groups), num_expected))
    lengths = [sum(span.num_frames for span in group) for group in groups]
    aim = val_fraction * sum(lengths)
    choices = []
    smallest = max(1, num_expected - _NUM_TRIED)
    largest = min(len(groups) - 1, num_expected + _NUM_TRIED)
    for num_held_out in range(smallest, largest + 1):
        choices.append(middles(len(groups), num_held_out))
    errors = [abs(sum(lengths[index] for index in choice) - aim) for choice in choices]
    best = choices[errors.index(min(errors))]
    num_frames = sum(lengths[index] for index in best)
    errors_alone = [abs(length - aim) for length in lengths]
    if num_frames > max(_MAX_FRACTION * sum(lengths), aim) and min(errors_alone) < min(errors):
        best = [errors_alone.index(min(errors_alone))]
    return set(best)


def _group(spans: Sequence[Span], holdout: str) -> list[list[Span]]:
    """Return spans in groups, in the order of the first span of each. A file, and files of one content, are in one."""
    names = _names(spans, holdout)
    group_of: dict[
        object, object
    ] = {}  # of each label another one of its group, and itself of the last one

    def find(label: object) -> object:
        group_of.setdefault(label, label)
        while group_of[label] != label:
            group_of[label] = group_of[group_of[label]]
            label = group_of[label]
        return label

    first_labels = []
    for span in spans:
        labels = _labels(span, names, holdout)
        for label in labels[1:]:
            group_of[find(label)] = find(labels[0])
        first_labels.append(labels[0])
    groups: dict[object, list[Span]] = {}
    for span, label in zip(spans, first_labels, strict=True):
        groups.setdefault(find(label), []).append(span)
    return list(groups.values())


def _labels(span: Span, names: Mapping[Source, tuple[str, ...]], holdout: str) -> list[object]:
    """Return what spans of one group have in common with another one of it, the file first."""
    source = resolve_source(span.info.source)
    labels: list[object] = [source]
    if holdout == _EARLIER:
        return labels
    if span.info.digest:
        labels.append(("content", span.info.digest))
    if span.group:
        labels.append(("column", span.group))
    if source in names:
        labels.append(("name", names[source]))
    return labels


def _names(spans: Sequence[Span], holdout: str) -> dict[Source, tuple[str, ...]]:
    """Return what the names of files in one group have in common; nothing if names do not count."""
    sources = list(dict.fromkeys(resolve_source(span.info.source) for span in spans))
    if holdout == "folder":
        return {source: PurePosixPath(str(source)).parts[:-1] for source in sources}
    has_column = any(span.group for span in spans)
    if holdout != "auto" or has_column:
        return {}
    words = [
        tuple(_WORDS.findall(str(PurePosixPath(str(source)).with_suffix("")))) for source in sources
    ]
    longest = max((len(name) for name in words), default=0)
    counts = {}
    for length in range(1, longest):
        counts[length] = len({name[:length] for name in words})
    for min_groups, min_files in _NAME_GROUPS:
        for length, num_groups in counts.items():
            if min_groups <= num_groups <= len(sources) / min_files:
                return {source: name[:length] for source, name in zip(sources, words, strict=True)}
    return {}


def middles(total: int, num_parts: int) -> list[int]:
    """Divide the indices from 0 to `total - 1` into equal parts, and return the middles."""
    return [(2 * part + 1) * total // (2 * num_parts) for part in range(num_parts)]


def _too_short(contract: str, spans: Sequence[Span], remedy: str) -> Exception:
    longest = max(spans, key=lambda span: span.num_frames)
    got = f"at most {longest.num_frames} frames, in {longest.info.source}"
    return argument_error("data", contract, got, remedy, DataError)
