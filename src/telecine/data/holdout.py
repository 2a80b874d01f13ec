"""The part of a data set that is held out for validation: whole groups of files, or the end of each file."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telecine.base.checks import argument_error
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.holdout_ends import hold_out_ends
from telecine.data.holdout_groups import group_by_file, group_spans, has_column
from telecine.data.lazy.sorted_numbers import distinct
from telecine.data.spacing import evenly_spaced
from telecine.data.span_table import SpanTable
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_EARLIER = "earlier"  # of `clips.holdout`
# Of fewer videos, the end of each is held out; of this many or more, whole groups of videos.
_MIN_VIDEOS = 10
MAX_FRACTION = 0.3
"""Of all frames. A larger held-out part is warned about."""
# Numbers of groups that are tried around the expected one, to come close to the fraction of frames.
_NUM_TRIED = 5


def split_table(spans: SpanTable, config: ClipConfig) -> tuple[SpanTable, SpanTable] | None:
    """Split spans into those to train on and held-out spans. The two have no frame in common.

    Of ten videos or more, whole groups of them are held out, evenly spaced in their order, so that a folder sorted by
    subject is sampled across subjects. Files with the same content are in one group. Of fewer videos, the end of each
    is held out, and the frames of a clip before it are left out. A video that is too short for both parts is used for
    training only. If all videos are too short, whole groups are held out. All held-out spans of videos are at least one
    clip long. Images are always whole.

    With `config.holdout` of "earlier", as runs of earlier versions did: each file is a group, whatever its name and its
    content. Groups are chosen by their number instead of their frames, and there is no gap before a held-out end.

    Args:
        spans: The frames to split. Spans of one video may overlap.
        config: Its `val_fraction` is the fraction of the frames to hold out, its `holdout` says how files are grouped,
            and its `num_frames`, with `stride` or `fps`, how long a validation clip is.

    Returns:
        The spans to train on, and the held-out spans; None if estimated spans have to be exact: to hold out the end of
        each video, as of few, or because images alone are in one group.

    Raises:
        DataError: no video is long enough for a clip, or for one in each part; there is only one image; no list has
            the column that `config.holdout` names; or there is only one group of a column or of folders.
    """
    _check_column(spans, config)
    videos = spans.take(~spans.is_image)
    images = spans.take(spans.is_image)
    image_groups = _group(images, config)
    num_image_groups = len(distinct(image_groups))
    train = []
    held_out = []
    if len(videos) > 0:
        parts = _split_videos(videos, config)
        if parts is None:
            return None
        train.append(parts[0])
        held_out.append(parts[1])
    elif num_image_groups < 2:
        if len(images) > 0:
            _check_groups(config, num_image_groups)
        if spans.infos is None:
            logger.info("all images are indexed, because by their headers they are in one group")
            return None
        got = "one image" if len(images) > 0 else "nothing"
        remedy = "Add some, or set `val_data`."
        raise argument_error("data", "a video or two images", got, remedy, DataError)
    if num_image_groups < 2:
        train.append(images)
    else:
        is_held_out = _choose(image_groups, images.num_frames, config)
        in_order = np.argsort(image_groups, kind="stable")
        train.append(images.take(in_order[~is_held_out[in_order]]))
        held_out.append(images.take(in_order[is_held_out[in_order]]))
    return SpanTable.joined(train), SpanTable.joined(held_out)


def _split_videos(videos: SpanTable, config: ClipConfig) -> tuple[SpanTable, SpanTable] | None:
    """Return spans of videos to train on and held-out spans, see `split_table`."""
    frames = ClipFrames.of(config.val_bucket, config)
    fits = videos.num_starts(frames) > 0
    if not fits.any():
        remedy = "Use fewer frames or a smaller stride."
        if config.fps is not None:
            remedy = "Use fewer frames, or another `clips.fps`."
        contract = f"long enough for a {frames.describe()}, {frames.rule()}"
        raise _too_short_error(contract, videos, remedy)
    if config.holdout == _EARLIER:
        return _split_as_earlier(videos, fits, frames, config)
    groups = _group(videos, config)
    num_groups = len(distinct(groups[fits]))
    _check_groups(config, num_groups)
    has_reason = (
        _needs_groups(config)
        or has_column(videos, config.holdout)
        or len(distinct(videos.real_file[fits])) >= _MIN_VIDEOS
    )
    if not has_reason or num_groups == 1:
        if videos.infos is None:
            reason = "they are few" if num_groups > 1 else "all of them are in one group"
            logger.info("all videos are indexed: the end of each is held out, because %s", reason)
            return None
        files = group_spans(videos, "file")
        parts = hold_out_ends(videos, files, frames, config.val_fraction, has_gap=True)
        if parts is not None:
            return parts
        if num_groups == 1:
            raise _no_end_error(videos, frames, config, has_gap=True)
    return _hold_out_groups(videos, groups, fits, config)


def _split_as_earlier(
    videos: SpanTable, fits: NDArray[np.bool_], frames: ClipFrames, config: ClipConfig
) -> tuple[SpanTable, SpanTable]:
    """Return spans of videos to train on and held-out spans, with `config.holdout` of "earlier", see `split_table`.

    Args:
        videos: The spans.
        fits: Whether each is long enough for a clip.
        frames: The frames of a clip.
        config: Its `val_fraction` is the fraction to hold out.
    """
    first_spans = group_by_file(videos)
    # Files are in the order of their first spans that are long enough.
    rows = np.flatnonzero(fits)
    first_fits = np.full(len(videos), len(videos))
    np.minimum.at(first_fits, first_spans[rows], rows)
    files = first_fits[first_spans]
    if len(distinct(files[fits])) >= _MIN_VIDEOS:
        return _hold_out_groups(videos, files, fits, config)
    parts = hold_out_ends(videos, files, frames, config.val_fraction, has_gap=False)
    if parts is None:
        raise _no_end_error(videos, frames, config, has_gap=False)
    return parts


def _hold_out_groups(
    videos: SpanTable,
    groups: NDArray[np.integer[Any]],
    fits: NDArray[np.bool_],
    config: ClipConfig,
) -> tuple[SpanTable, SpanTable]:
    """Return spans to train on and spans of whole held-out groups, both in the order of groups.

    Args:
        videos: The spans.
        groups: The group of each span.
        fits: Whether each is long enough for a clip.
        config: Its `val_fraction` is the fraction to hold out.
    """
    chosen = groups[fits][_choose(groups[fits], videos.num_frames[fits], config)]
    is_held_out = np.isin(groups, chosen)
    in_order = np.argsort(groups, kind="stable")
    long_enough = in_order[fits[in_order]]
    # Too short for a validation clip, they may be long enough for clips of another size.
    too_short = np.flatnonzero(~fits & ~is_held_out)
    train = np.concatenate([long_enough[~is_held_out[long_enough]], too_short])
    return videos.take(train), videos.take(long_enough[is_held_out[long_enough]])


def _group(spans: SpanTable, config: ClipConfig) -> NDArray[np.integer[Any]]:
    """Return the group of each span: the index of its first span."""
    if config.holdout == _EARLIER:
        return group_by_file(spans)
    follows_links = config.file_identity == "path" and spans.infos is not None
    return group_spans(spans, config.holdout, follows_links=follows_links)


def _needs_groups(config: ClipConfig) -> bool:
    """Return whether the settings name what is in one group."""
    return config.holdout == "folder" or config.holdout.startswith("column:")


def _check_column(spans: SpanTable, config: ClipConfig) -> None:
    """Check that a list has the column that the settings name, with a value in some line.

    Raises:
        DataError: None has.
    """
    if config.holdout.startswith("column:") and not spans.group.any():
        contract = "a column that a list of the data has, with values"
        remedy = "Check its name. With `file`, each file is held out by itself."
        raise argument_error("clips.holdout", contract, config.holdout, remedy, DataError)


def _check_groups(config: ClipConfig, num_groups: int) -> None:
    """Check that there are two groups of a column or folders, if the settings name them.

    Raises:
        DataError: There are not.
    """
    if _needs_groups(config) and num_groups < 2:
        contract = "a column or folders of two groups or more"
        remedy = "Use another column, folders or `auto`, or set `val_data`."
        raise argument_error("clips.holdout", contract, config.holdout, remedy, DataError)


def _choose(
    groups: NDArray[np.integer[Any]], num_frames: NDArray[np.integer[Any]], config: ClipConfig
) -> NDArray[np.bool_]:
    """Return for each span whether its group is held out.

    Args:
        groups: The group of each span.
        num_frames: The number of frames of each span.
        config: Its `val_fraction` is the fraction of frames to hold out.
    """
    names, codes = np.unique(groups, return_inverse=True)
    is_chosen = np.zeros(len(names), np.bool_)
    if config.holdout == _EARLIER:
        count = max(1, round(len(names) * config.val_fraction))
        is_chosen[evenly_spaced(len(names), count)] = True
    else:
        lengths = np.bincount(codes, weights=num_frames)
        chosen = _choose_groups([int(length) for length in lengths], config.val_fraction)
        is_chosen[chosen] = True
    return is_chosen[codes]


def _choose_groups(lengths: Sequence[int], val_fraction: float) -> list[int]:
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
    is_too_large = num_frames > max(MAX_FRACTION * sum(lengths), aim)
    if is_too_large and min(errors_alone) < min(errors):
        best = [errors_alone.index(min(errors_alone))]
    return best


def _no_end_error(
    videos: SpanTable, frames: ClipFrames, config: ClipConfig, *, has_gap: bool
) -> Exception:
    """Return the error of few videos, none of which is long enough to hold out its end.

    Args:
        videos: The videos, which are indexed.
        frames: The frames of a clip.
        config: The settings.
        has_gap: Whether there is a clip between both parts.
    """
    contract = "long enough for a training and a held-out clip"
    if config.fps is None:
        num_frames = frames.num_source_frames(videos.exact_span(0).info)
        num_clips = 3 if has_gap else 2
        contract += f" of {num_frames} frames, {num_clips * num_frames} together"
    elif has_gap:
        contract += ", and for another one between them"
    remedy = f"Use fewer frames or a smaller stride, or {_MIN_VIDEOS} videos or more."
    return _too_short_error(contract, videos, remedy)


def _too_short_error(contract: str, videos: SpanTable, remedy: str) -> Exception:
    """Return the error of videos that are too short.

    Args:
        contract: How long a video must be.
        videos: The videos.
        remedy: What to do.
    """
    longest = videos[int(videos.num_frames.argmax())]
    got = f"at most {longest.num_frames} frames, in {longest.source}"
    return argument_error("data", contract, got, remedy, DataError)
