"""The part of a data set that is held out for validation: whole groups of files, or the end of each file."""

from collections.abc import Sequence

from telecine.base.checks import argument_error
from telecine.data.clip_frames import ClipFrames
from telecine.data.errors import DataError
from telecine.data.holdout_earlier import split_as_earlier
from telecine.data.holdout_groups import group_spans, has_column
from telecine.data.holdout_parts import (
    MIN_VIDEOS,
    cut_file,
    hold_out_ends,
    hold_out_groups,
    no_clip_error,
    no_image_error,
    too_short_error,
)
from telecine.data.source import Span, resolve_source
from telecine.data.spacing import evenly_spaced
from telecine.settings import ClipConfig

_EARLIER = "earlier"  # of `clips.holdout`, see `split_as_earlier`
MAX_FRACTION = 0.3
"""Of all frames. A larger held-out part is warned about."""
# Numbers of groups that are tried around the expected one, to come close to the fraction of frames.
_NUM_TRIED = 5


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
    if config.holdout == _EARLIER:
        return split_as_earlier(spans, config)
    videos = [span for span in spans if not span.info.is_image]
    images = [span for span in spans if span.info.is_image]
    image_groups = group_spans(images, config.holdout)
    if not videos and len(image_groups) < 2:
        raise no_image_error(len(image_groups))
    train: list[Span] = []
    held_out: list[Span] = []
    if videos:
        train, held_out = _split_videos(videos, config)
    if len(image_groups) < 2:
        return train + images, held_out
    chosen = _choose(image_groups, config.val_fraction)
    for index, group in enumerate(image_groups):
        part = held_out if index in chosen else train
        part.extend(group)
    return train, held_out


def _split_videos(videos: Sequence[Span], config: ClipConfig) -> tuple[list[Span], list[Span]]:
    """Return spans of videos to train on and held-out spans, see `split_videos`."""
    frames = ClipFrames.of(config.val_bucket, config)
    if not any(frames.fits(span) for span in videos):
        raise no_clip_error(videos, config)
    groups: list[list[Span]] = []  # those with a span that is long enough
    long_enough: list[list[Span]] = []  # these spans of each
    for group in group_spans(videos, config.holdout):
        spans = [span for span in group if frames.fits(span)]
        if spans:
            groups.append(group)
            long_enough.append(spans)
    by_groups = prefers_groups(
        config,
        num_files=len(
            {resolve_source(span.info.source) for group in long_enough for span in group}
        ),
        num_groups=len(groups),
        has_column=has_column(videos, config.holdout),
    )
    if not by_groups:
        files = group_spans(videos, "file")
        cuts = [cut_file(file, config.val_fraction, frames) for file in files]
        if any(cut is not None for cut in cuts):
            return hold_out_ends(videos, files, cuts, frames)
        if len(groups) == 1:
            contract = (
                "long enough for a training and a held-out clip, and for another one between them"
            )
            if config.fps is None:
                num_frames = frames.num_source_frames(videos[0].info)
                contract = (
                    f"long enough for a training and a held-out clip of {num_frames} frames, "
                )
                contract += f"{3 * num_frames} together"
            remedy = f"Use fewer frames or a smaller stride, or {MIN_VIDEOS} videos or more."
            raise too_short_error(contract, videos, remedy)
    chosen = _choose(long_enough, config.val_fraction)
    return hold_out_groups(videos, groups, chosen, frames)


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


def _choose(groups: Sequence[Sequence[Span]], val_fraction: float) -> set[int]:
    """Return the indices of groups to hold out, see `choose_groups`."""
    lengths = [sum(span.num_frames for span in group) for group in groups]
    return choose_groups(lengths, val_fraction)


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
    is_too_large = num_frames > max(MAX_FRACTION * sum(lengths), aim)
    if is_too_large and min(errors_alone) < min(errors):
        best = [errors_alone.index(min(errors_alone))]
    return set(best)
