"""How much of a data set is held out for validation, for a console, a page and warnings."""

import logging
from dataclasses import dataclass

import numpy as np

from telecine.base.checks import count
from telecine.data.holdout import MAX_FRACTION
from telecine.data.lazy.sorted_numbers import distinct, first_of_each
from telecine.data.source import Source
from telecine.data.span_table import SpanTable

logger = logging.getLogger(__name__)

_NUM_NAMED = 5


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
    def of(cls, train: SpanTable, held_out: SpanTable) -> "_Extent":
        """Return that of two parts of one table: of its videos if some are held out, else of its images."""
        are_images = bool(held_out.is_image.all())
        train = train.take(train.is_image == are_images)
        held_out = held_out.take(held_out.is_image == are_images)
        files = held_out.real_file
        rows = distinct(files)
        first_places = first_of_each(files)
        is_trained_on = np.zeros(len(train.files), np.bool_)
        is_trained_on[train.real_file] = True
        num_common = int(is_trained_on[rows].sum())
        num_frames = int(held_out.num_frames.sum())
        return cls(
            num_files=len(rows),
            num_all_files=len(rows) + int(is_trained_on.sum()) - num_common,
            has_ends=num_common > 0,
            are_images=are_images,
            num_frames=num_frames,
            num_all_frames=num_frames + int(train.num_frames.sum()),
            first_files=[held_out[place].source for place in first_places[:_NUM_NAMED]],
        )


def describe_held_out(train: SpanTable, held_out: SpanTable) -> str:
    """Return how many files and frames are held out, and the names of the first files; for a console and a page.

    Args:
        train: The spans to train on.
        held_out: The held-out spans, of the same table.
    """
    extent = _Extent.of(train, held_out)
    kind = "image" if extent.are_images else "video"
    text = f"{extent.num_files} of {count(extent.num_all_files, kind)}"
    if extent.has_ends:
        text = f"the end of {text}"
    named = ", ".join(source.name for source in extent.first_files)
    if extent.num_files > _NUM_NAMED:
        named += f" and {extent.num_files - _NUM_NAMED} more"
    return f"{text}, {extent.num_frames} of {extent.num_all_frames} frames: {named}"


def warn_of_held_out(train: SpanTable, held_out: SpanTable, val_fraction: float) -> None:
    """Warn if one of several files is all that is held out, or if too much is.

    Args:
        train: The spans to train on.
        held_out: The held-out spans, of the same table.
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
    if fraction > max(MAX_FRACTION, val_fraction):
        text = "%.0f %% of the frames are held out, %s; %s"
        logger.warning(text, 100 * fraction, describe_held_out(train, held_out), remedy)
