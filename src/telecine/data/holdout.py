"""The part of a data set that is held out for validation: whole groups of files, or the end of each file."""

import logging
from collections.abc import Sequence

from telecine.base.checks import argument_error, count
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.holdout_earlier import OLD_HOLDOUT, choose_files, group_by_file, split_as_earlier
from telecine.data.holdout_groups import group_spans, has_column
from telecine.data.holdout_split import (
    MAX_FRACTION,
    MIN_VIDEOS,
    Split,
    choose_groups,
    hold_out_ends,
    hold_out_groups,
)
from telecine.data.source import Span, resolve_source
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_NUM_NAMED = 5


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
    is_earlier = config.holdout == OLD_HOLDOUT
    image_groups = group_by_file(images) if is_earlier else group_spans(images, config.holdout)
    if not videos and len(image_groups) < 2:
        got = "one image" if image_groups else "nothing"
        raise argument_error(
            "data", "a video or two images", got, "Add some, or set `val_data`.", DataError
        )
    split = Split()
    if videos:
        split = _split_videos(videos, config)
    if len(image_groups) < 2:
        return split.train + images, split.held_out
    if is_earlier:
        chosen = choose_files(len(image_groups), config.val_fraction)
    else:
        chosen = choose_groups(image_groups, config.val_fraction)
    for index, group in enumerate(image_groups):
        part = split.held_out if index in chosen else split.train
        part.extend(group)
    return split.train, split.held_out


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
    if fraction > max(MAX_FRACTION, val_fraction):
        text = "%.0f %% of the frames are held out, %s; %s"
        logger.warning(text, 100 * fraction, describe_held_out(train, held_out), remedy)


def _split_videos(videos: Sequence[Span], config: ClipConfig) -> Split:
    frames = ClipFrames.of(config.val_bucket, config)
    if not any(frames.fits(span) for span in videos):
        remedy = "Use fewer frames or a smaller stride."
        if config.fps is not None:
            remedy = "Use fewer frames, or another `clips.fps`."
        contract = f"long enough for {frames.describe()}, {frames.rule()}"
        raise _too_short(contract, videos, remedy)
    if config.holdout == OLD_HOLDOUT:
        split = split_as_earlier(videos, config.val_fraction, frames)
    elif _is_asked_for(config) or has_column(videos, config.holdout) or _are_many(videos, frames):
        split = _split_by_group(videos, config, frames)
    else:
        split = _split_by_end(videos, config, frames)
    if split is None:
        contract = (
            "long enough for a training and a held-out clip, and for another one between them"
        )
        if config.fps is None:
            num_frames = frames.num_source_frames(videos[0].info)
            num_clips = 2 if config.holdout == OLD_HOLDOUT else 3
            contract = f"long enough for a training and a held-out clip of {num_frames} frames, "
            contract += f"{num_clips * num_frames} together"
        remedy = f"Use fewer frames or a smaller stride, or {MIN_VIDEOS} videos or more."
        raise _too_short(contract, videos, remedy)
    split.train_on_short_spans(videos, frames)
    return split


def _is_asked_for(config: ClipConfig) -> bool:
    """Return whether the user has named the groups."""
    return config.holdout == "folder" or config.holdout.startswith("column:")


def _are_many(videos: Sequence[Span], frames: ClipFrames) -> bool:
    files = {resolve_source(span.info.source) for span in videos if frames.fits(span)}
    return len(files) >= MIN_VIDEOS


def _split_by_group(videos: Sequence[Span], config: ClipConfig, frames: ClipFrames) -> Split | None:
    """Hold out whole groups; if all videos are in one, the end of each file."""
    groups = _usable_groups(videos, config, frames)
    if len(groups) > 1:
        return _hold_out_some(groups, config, frames)
    if _is_asked_for(config):
        contract = "a column or folders of two groups or more"
        remedy = "Use another column, folders or `auto`, or set `val_data`."
        raise argument_error("clips.holdout", contract, config.holdout, remedy, DataError)
    return hold_out_ends(group_spans(videos, "file"), config.val_fraction, frames)


def _split_by_end(videos: Sequence[Span], config: ClipConfig, frames: ClipFrames) -> Split | None:
    """Hold out the end of each file; if all are too short for that, whole groups."""
    split = hold_out_ends(group_spans(videos, "file"), config.val_fraction, frames)
    if split is not None:
        return split
    groups = _usable_groups(videos, config, frames)
    return _hold_out_some(groups, config, frames) if len(groups) > 1 else None


def _usable_groups(
    videos: Sequence[Span], config: ClipConfig, frames: ClipFrames
) -> list[list[Span]]:
    """Return the groups that have a clip."""
    groups = group_spans(videos, config.holdout)
    return [group for group in groups if any(frames.fits(span) for span in group)]


def _hold_out_some(
    groups: Sequence[Sequence[Span]], config: ClipConfig, frames: ClipFrames
) -> Split:
    long_enough = [[span for span in group if frames.fits(span)] for group in groups]
    return hold_out_groups(groups, choose_groups(long_enough, config.val_fraction), frames)


def _too_short(contract: str, spans: Sequence[Span], remedy: str) -> Exception:
    longest = max(spans, key=lambda span: span.num_frames)
    got = f"at most {longest.num_frames} frames, in {longest.info.source}"
    return argument_error("data", contract, got, remedy, DataError)
