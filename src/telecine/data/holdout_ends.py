"""The end of each file, held out for validation, as of few videos."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from telecine.data.clip_frames import ClipFrames
from telecine.data.source import Span
from telecine.data.span_table import SpanTable

_Part: TypeAlias = tuple[int, Span]  # the row of a span, and a part of it


def hold_out_ends(
    videos: SpanTable,
    files: NDArray[np.integer[Any]],
    frames: ClipFrames,
    val_fraction: float,
    *,
    has_gap: bool,
) -> tuple[SpanTable, SpanTable] | None:
    """Hold out the end of each file that is long enough for a clip in each part.

    Args:
        videos: Exact spans. Of one that is too short for a validation clip, the frames before the end are trained on.
        files: A number for each span, equal for spans of one file and of its copies, by which files are in order.
        frames: The frames of a validation clip.
        val_fraction: The fraction of the frames to hold out.
        has_gap: Whether the frames of one clip before the held-out ones are not used at all.

    Returns:
        The spans to train on, and the held-out spans; None if no file is long enough.
    """
    fits = videos.num_starts(frames) > 0
    rows = np.flatnonzero(fits)
    in_order = rows[np.argsort(files[rows], kind="stable")]
    file_begins = np.flatnonzero(np.diff(files[in_order])) + 1
    train: list[_Part] = []
    held_out: list[_Part] = []
    train_ends: dict[int, int] = {}  # of files with a held-out end
    for rows_of_file in np.split(in_order, file_begins):
        spans = [(row, videos.exact_span(row)) for row in rows_of_file.tolist()]
        cut = _cut_file(spans, frames, val_fraction, has_gap=has_gap)
        if cut is None:
            train.extend(spans)
            continue
        train.extend(cut.train)
        held_out.extend(cut.held_out)
        train_ends[int(files[rows_of_file[0]])] = cut.train_end
    if not held_out:
        return None
    for row in np.flatnonzero(~fits).tolist():
        span = videos.exact_span(row)
        train_end = train_ends.get(int(files[row]), span.last_frame + 1)
        last_frame = min(span.last_frame, train_end - 1)
        if span.first_frame <= last_frame:
            train.append((row, replace(span, last_frame=last_frame)))
    return videos.cut(train), videos.cut(held_out)


class _Cut(NamedTuple):
    """A file that is trained on up to a frame, and whose end is held out."""

    train: list[_Part]
    held_out: list[_Part]
    train_end: int
    """The first frame that is not trained on."""


def _cut_file(
    spans: Sequence[_Part], frames: ClipFrames, val_fraction: float, *, has_gap: bool
) -> _Cut | None:
    """Return the two parts of a file; None if it is too short for a clip in each.

    Args:
        spans: The rows and the spans of a file, all long enough for a validation clip.
        frames: The frames of a validation clip.
        val_fraction: The fraction of its frames to hold out.
        has_gap: Whether the frames of one clip before the held-out ones are not used at all.
    """
    numbers: set[int] = set()
    for _, span in spans:
        numbers.update(range(span.first_frame, span.last_frame + 1))
    _, last = max(spans, key=lambda part: part[1].last_frame)
    last_start = last.first_frame + frames.num_starts(last) - 1
    first_held_out = min(last_start, last.last_frame + 1 - round(len(numbers) * val_fraction))
    gap = frames.num_source_frames(last.info) if has_gap else 0
    train = []
    held_out = []
    for row, span in spans:
        before = replace(span, last_frame=min(span.last_frame, first_held_out - gap - 1))
        if frames.fits(before):
            train.append((row, before))
        after = replace(span, first_frame=max(span.first_frame, first_held_out))
        if frames.fits(after):
            held_out.append((row, after))
    if not train:
        return None
    train_end = min(span.first_frame for _, span in held_out) - gap
    return _Cut(train, held_out, train_end)
