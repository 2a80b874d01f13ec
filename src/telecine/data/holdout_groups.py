"""Groups of files that are held out together: of one content, folder, value of a column, or beginning of the name."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telecine.data.lazy.file_table import FileTable
from telecine.data.lazy.sorted_numbers import distinct
from telecine.data.paths import real_paths
from telecine.data.span_table import SpanTable

# Names are grouped by the shortest beginning with this many groups or more, of this many files on average or more. If
# there is none, the next line holds.
_NAME_GROUPS = ((10, 2), (4, 2), (10, 1))
_MAX_GROUPS = max(min_groups for min_groups, _ in _NAME_GROUPS)  # longer beginnings do not matter
_NUM_LENGTHS = 4  # of beginnings of names that are compared at once
_WORDS = re.compile(r"\d+|[^\W\d_]+")  # the parts of a name: numbers, and letters between them


def group_spans(
    spans: SpanTable, holdout: str, *, follows_links: bool = False
) -> NDArray[np.integer[Any]]:
    """Return the group of each span: the index of its first span. Files of one content are in one group.

    By headers, files are of one content if their sizes, beginnings and ends are equal.

    Args:
        spans: The spans, of any files.
        holdout: What else is in one group, see `ClipConfig.holdout`.
        follows_links: Whether names are those of the files that links lead to.
    """
    labels: list[NDArray[np.integer[Any]]] = [spans.real_file]
    digest = spans.files.headers["digest"][spans.file]
    labels.append(np.where(digest == 0, -1 - spans.file, digest))
    if spans.infos is None and (digest == 0).any():  # of files that a list describes
        rows, codes = np.unique(spans.file, return_inverse=True)
        labels.append(spans.files.process_local_ids(rows)[codes])
    if holdout != "file" and spans.group.any():
        labels.append(np.where(spans.group == 0, -1 - np.arange(len(spans)), spans.group))
    names = _name_labels(spans, holdout, follows_links)
    if names is not None:
        labels.append(names)
    return _connected_groups(labels)


def group_by_file(spans: SpanTable) -> NDArray[np.integer[Any]]:
    """Return the group of each span: the index of the first span of its file, whatever its content."""
    return _connected_groups([spans.real_file])


def has_column(spans: SpanTable, holdout: str) -> bool:
    """Return whether a list says by its column `group` what is held out together."""
    return holdout == "auto" and bool(spans.group.any())


def _connected_groups(labels: list[NDArray[np.integer[Any]]]) -> NDArray[np.integer[Any]]:
    """Return the first index of each one's group. Indices that share a label, also through others, are in one group.

    Args:
        labels: Of each kind, the label of each index.
    """
    all_codes = []
    for one in labels:
        if len(distinct(one)) < len(one):  # else it joins no spans
            _, codes = np.unique(one, return_inverse=True)
            all_codes.append(codes)
    count = len(labels[0])
    group = np.arange(count)
    while True:
        before = group
        for codes in all_codes:
            smallest = np.full(count, count)
            np.minimum.at(smallest, codes, group)
            group = smallest[codes]
        if np.array_equal(group, before):
            return group


def _name_labels(spans: SpanTable, holdout: str, follows_links: bool) -> NDArray[np.int64] | None:
    """Return a hash for each span of what names in one group have in common; None if names do not count."""
    if holdout not in ("auto", "folder") or len(spans) == 0 or has_column(spans, holdout):
        return None
    files = distinct(spans.real_file)
    codes = np.searchsorted(files, spans.real_file)
    if holdout == "folder":
        paths = _paths_of(spans.files, files, follows_links)
        folders = (os.path.dirname(path) for path in paths)
        return np.fromiter((hash(folder) for folder in folders), np.int64)[codes]
    counts: dict[int, int] = {}
    labels_of: dict[int, NDArray[np.int64]] = {}
    for length, labels in _labels_by_length(spans.files, files, follows_links):
        counts[length] = len(distinct(labels))
        if counts[length] > 1:
            labels_of[length] = labels
        if counts[length] >= _MAX_GROUPS:
            break
    chosen = _common_length(counts, len(files))
    return None if chosen is None else labels_of[chosen][codes]


def _paths_of(
    files: FileTable, rows: NDArray[np.integer[Any]], follows_links: bool
) -> Iterator[str]:
    """Yield the paths of files in some rows, or with `follows_links` those of the files that links lead to."""
    paths = files.paths(rows)
    return real_paths(paths) if follows_links else paths


def _labels_by_length(
    files: FileTable, rows: NDArray[np.integer[Any]], follows_links: bool
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield numbers of words, and for each a hash of the first words of each path. The longest path has more words.

    Args:
        files: The files.
        rows: Those that count.
        follows_links: Whether paths are those of the files that links lead to.
    """
    length = 1
    if not follows_links:
        # Shorter beginnings are common to all names.
        length = max(1, len(_words_of(files.common_beginning(rows))))
        labels_of_archives = _beginnings_of_archives(files, rows, length)
        while labels_of_archives is not None:
            yield length, labels_of_archives
            length += 1
            labels_of_archives = _beginnings_of_archives(files, rows, length)
    while True:
        beginnings, longest = _beginnings(_paths_of(files, rows, follows_links), len(rows), length)
        for labels in beginnings:
            if length >= longest:
                return
            yield length, labels
            length += 1


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
    words = [_words_of(f"{archive}/") for archive in files.archives]
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
        words = _words_of(path)
        longest = max(longest, len(words))
        for row in range(_NUM_LENGTHS):
            hashes[row, place] = hash(words[: first + row])
    return hashes, longest


def _words_of(name: str) -> tuple[str, ...]:
    """Return the numbers and the words of a path without its suffix."""
    stem, _ = os.path.splitext(name)
    return tuple(_WORDS.findall(stem))


def _common_length(counts: Mapping[int, int], num_files: int) -> int | None:
    """Return the number of words at the beginning of names that make groups; None if names do not count.

    Args:
        counts: The number of different beginnings, by their number of words, from the smallest.
        num_files: The number of files.
    """
    for min_groups, min_files in _NAME_GROUPS:
        for length, num_groups in counts.items():
            if min_groups <= num_groups <= num_files / min_files:
                return length
    return None
