"""The part of a table of spans that is held out: whole groups of files, the same ones as of indexed spans.

It is apart from `holdout.py`, because a loop over spans is slow where these are rows of a table.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telecine.data.clip_frames import ClipFrames
from telecine.data.holdout import choose_groups, prefers_groups
from telecine.data.holdout_groups import MAX_GROUPS, common_length, words_of
from telecine.data.holdout_parts import no_clip_error
from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.sorted_numbers import distinct
from telecine.data.lazy.span_table import SpanTable
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_NUM_LENGTHS = 4  # beginnings of names of so many lengths are compared at once


def split_table(spans: SpanTable, config: ClipConfig) -> tuple[SpanTable, SpanTable] | None:
    """Split spans into those to train on and held-out spans, as `split_videos` does.

    Args:
        spans: The frames to split.
        config: As of `split_videos`, but `holdout` is not "earlier".

    Returns:
        The spans to train on, and the held-out spans; None if all files have to be indexed: to hold out the end of each
        video, as of few, or because images alone are in one group.

    Raises:
        DataError: no video is long enough for a clip, or there is only one group of a column or of folders.
    """
    train_rows = []
    held_out_rows = []
    video_rows = np.flatnonzero(~spans.is_image)
    if len(video_rows) > 0:
        videos = spans.take(video_rows)
        frames = ClipFrames.of(config.val_bucket, config)
        fits = videos.num_starts(frames) > 0
        if not fits.any():
            raise no_clip_error([videos[int(videos.num_frames.argmax())]], config)
        group = group_table(videos, config.holdout)
        num_groups = len(distinct(group[fits]))
        if not prefers_groups(
            config,
            num_files=len(distinct(videos.file[fits])),
            num_groups=num_groups,
            has_column=config.holdout == "auto" and bool(videos.group.any()),
        ):
            reason = "they are few" if num_groups > 1 else "all of them are in one group"
            logger.info("all videos are indexed: the end of each is held out, because %s", reason)
            return None
        held_out = _choose(group[fits], videos.num_frames[fits], config.val_fraction)
        is_held_out = np.isin(group, held_out)
        in_order = np.argsort(group, kind="stable")
        train_rows.append(video_rows[in_order[(fits & ~is_held_out)[in_order]]])
        held_out_rows.append(video_rows[in_order[(fits & is_held_out)[in_order]]])
        # Too short for a validation clip, they may be long enough for clips of another size.
        train_rows.append(video_rows[~fits & ~is_held_out])
    image_rows = np.flatnonzero(spans.is_image)
    images = spans.take(image_rows)
    image_group = group_table(images, config.holdout)
    if len(distinct(image_group)) < 2:
        if len(video_rows) == 0:
            num_files = len(distinct(images.file))
            prefers_groups(config, num_files=num_files, num_groups=1, has_column=False)
            logger.info("all images are indexed, because by their headers they are in one group")
            return None
        train_rows.append(image_rows)
    else:
        held_out = _choose(image_group, images.num_frames, config.val_fraction)
        is_held_out = np.isin(image_group, held_out)
        in_order = np.argsort(image_group, kind="stable")
        train_rows.append(image_rows[in_order[~is_held_out[in_order]]])
        held_out_rows.append(image_rows[in_order[is_held_out[in_order]]])
    return spans.take(np.concatenate(train_rows)), spans.take(np.concatenate(held_out_rows))


def _choose(
    group: NDArray[np.int64], num_frames: NDArray[np.integer[Any]], val_fraction: float
) -> NDArray[np.int64]:
    """Return the groups to hold out.

    Args:
        group: The group of each span.
        num_frames: The number of frames of each span.
        val_fraction: The fraction of frames to hold out.
    """
    groups, codes = np.unique(group, return_inverse=True)
    lengths = np.bincount(codes, weights=num_frames)
    chosen = choose_groups([int(length) for length in lengths], val_fraction)
    return groups[sorted(chosen)]


def group_table(spans: SpanTable, holdout: str) -> NDArray[np.int64]:
    """Return the group of each span, as `group_spans`: the index of its first span.

    Files are of one content if their sizes, beginnings and ends are equal, or if links lead to one of them.

    Args:
        spans: The spans, of any files.
        holdout: What else is in one group, see `ClipConfig.holdout`.
    """
    labels: list[NDArray[np.integer[Any]]] = [spans.file]
    digest = spans.files.headers["digest"][spans.file]
    labels.append(np.where(digest == 0, -1 - spans.file, digest))
    if (digest == 0).any():  # of files that a list describes
        rows, codes = np.unique(spans.file, return_inverse=True)
        labels.append(spans.files.process_local_ids(rows)[codes])
    if spans.group.any():
        labels.append(np.where(spans.group == 0, -1 - np.arange(len(spans)), spans.group))
    names = _name_labels(spans, holdout)
    if names is not None:
        labels.append(names)
    all_codes = []
    for one in labels:
        if len(distinct(one)) < len(one):  # else it joins no spans
            _, codes = np.unique(one, return_inverse=True)
            all_codes.append(codes)
    group = np.arange(len(spans))
    while True:
        before = group
        for codes in all_codes:
            smallest = np.full(len(spans), len(spans))
            np.minimum.at(smallest, codes, group)
            group = smallest[codes]
        if np.array_equal(group, before):
            return group


def _name_labels(spans: SpanTable, holdout: str) -> NDArray[np.int64] | None:
    """Return a hash for each span of what names in one group have in common; None if names do not count."""
    if holdout not in ("auto", "folder") or len(spans) == 0:
        return None
    if holdout == "auto" and spans.group.any():
        return None
    files = distinct(spans.file)
    codes = np.searchsorted(files, spans.file)
    if holdout == "folder":
        folders = (os.path.dirname(path) for path in spans.files.paths(files))
        return np.fromiter((hash(folder) for folder in folders), np.int64)[codes]
    common = spans.files.common_beginning(files)
    # Shorter beginnings are common to all names, longer ones have more groups than are looked for.
    first = max(1, len(words_of(common)))
    counts: dict[int, int] = {}
    labels_of: dict[int, NDArray[np.int64]] = {}
    longest = first + 1
    length = first
    while length < longest and max(counts.values(), default=0) < MAX_GROUPS:
        of_archives = _beginnings_of_archives(spans.files, files, length)
        if of_archives is None:
            beginnings, longest = _beginnings(spans.files.paths(files), len(files), length)
        else:
            beginnings = of_archives[None]
            longest = length + 2  # or more: the next round looks
        for labels in beginnings[: longest - length]:
            counts[length] = len(distinct(labels))
            if counts[length] > 1:
                labels_of[length] = labels
            length += 1
    chosen = common_length(counts, len(files))
    return None if chosen is None else labels_of[chosen][codes]


def _beginnings_of_archives(
    files: FileTable, rows: NDArray[np.integer[Any]], length: int
) -> NDArray[np.int64] | None:
    """Return a hash for each file of the first words of its path, all of which the path of its tar file has.

    Args:
        files: The files.
        rows: Those that count.
        length: The number of words.

    Returns:
        The hashes; None if names of members are needed, too, or if no path has more words.
    """
    codes = files.locations["archive"][rows]
    words = [words_of(f"{archive}/") for archive in files.archives]
    used = distinct(codes)
    if used[0] < 0:  # a file by itself
        return None
    counts = [len(words[code]) for code in used]
    if min(counts) < length or max(counts) == length:
        return None
    return np.array([hash(one[:length]) for one in words], np.int64)[codes]


def _beginnings(paths: Iterator[str], num_paths: int, first: int) -> tuple[NDArray[np.int64], int]:
    """Return hashes of the first words of paths, shape `(L, N)`, of L numbers of words; and the most words of a path.

    Args:
        paths: The paths.
        num_paths: The number of paths.
        first: The smallest number of words.
    """
    hashes = np.empty((_NUM_LENGTHS, num_paths), np.int64)
    longest = 0
    for place, path in enumerate(paths):
        words = words_of(path)
        longest = max(longest, len(words))
        for row in range(_NUM_LENGTHS):
            hashes[row, place] = hash(words[: first + row])
    return hashes, longest


def without_held_out_files(spans: SpanTable, held_out: SpanTable) -> SpanTable:
    """Return the spans of files that are not held out, by path and content; if there is none, warn and return all.

    Args:
        spans: The frames to train on.
        held_out: The frames to leave out; files with some of them are left out whole.
    """
    identities = held_out.files.process_local_ids(distinct(held_out.file))
    digests = held_out.files.headers["digest"][held_out.file]
    digest = spans.files.headers["digest"][spans.file]
    is_held_out = np.isin(digest, digests[digests != 0])
    rows = distinct(spans.file)
    is_named = np.isin(spans.files.process_local_ids(rows), identities)
    is_held_out |= np.isin(spans.file, rows[is_named])
    if is_held_out.all():
        logger.warning("`val_data` has all of `data`: validation is on what is trained on")
        return spans
    if is_held_out.any():
        num_files = len(distinct(spans.file[is_held_out]))
        logger.warning("%d files are in `val_data`, and not trained on", num_files)
    return spans.take(~is_held_out)
