"""Groups of files that are held out together: of one content, folder, value of a column, or beginning of the name."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from telecine.data.source import Source, Span, resolve_source

# Names are grouped by the shortest beginning with this many groups or more, of this many files on average or more. If
# there is none, the next line holds.
_NAME_GROUPS = ((10, 2), (4, 2), (10, 1))
MAX_GROUPS = max(min_groups for min_groups, _ in _NAME_GROUPS)  # longer beginnings do not matter
_WORDS = re.compile(r"\d+|[^\W\d_]+")  # the parts of a name: numbers, and letters between them


def group_spans(spans: Sequence[Span], holdout: str) -> list[list[Span]]:
    """Return spans in groups, in the order of the first span of each. A file, and files of one content, are in one.

    Args:
        spans: The spans, of any files.
        holdout: What else is in one group, see `ClipConfig.holdout`.
    """
    names = _common_names(spans, holdout)
    parent_of: dict[object, object] = {}  # union-find over labels: a root is its own parent

    def root_of(label: object) -> object:
        parent_of.setdefault(label, label)
        while parent_of[label] != label:
            parent_of[label] = parent_of[parent_of[label]]
            label = parent_of[label]
        return label

    first_labels = []
    for span in spans:
        labels = _labels(span, names)
        for label in labels[1:]:
            parent_of[root_of(label)] = root_of(labels[0])
        first_labels.append(labels[0])
    groups: dict[object, list[Span]] = {}
    for span, label in zip(spans, first_labels, strict=True):
        groups.setdefault(root_of(label), []).append(span)
    return list(groups.values())


def has_column(spans: Sequence[Span], holdout: str) -> bool:
    """Return whether a list says by its column `group` what is held out together."""
    return holdout == "auto" and any(span.group for span in spans)


def _labels(span: Span, names: Mapping[Source, tuple[str, ...]]) -> list[object]:
    """Return the labels of a span, its file first. Spans with a common label are in one group."""
    source = resolve_source(span.info.source)
    labels: list[object] = [source]
    if span.info.digest:
        labels.append(("content", span.info.digest))
    if span.group:
        labels.append(("column", span.group))
    if source in names:
        labels.append(("name", names[source]))
    return labels


def _common_names(spans: Sequence[Span], holdout: str) -> dict[Source, tuple[str, ...]]:
    """Return what the names of files in one group have in common; nothing if names do not count."""
    sources = list(dict.fromkeys(resolve_source(span.info.source) for span in spans))
    if holdout == "folder":
        return {source: PurePosixPath(str(source)).parts[:-1] for source in sources}
    if holdout != "auto" or has_column(spans, holdout):
        return {}
    words = [words_of(str(source)) for source in sources]
    longest = max((len(name) for name in words), default=0)
    counts = {}
    for length in range(1, longest):
        counts[length] = len({name[:length] for name in words})
    chosen = common_length(counts, len(sources))
    if chosen is None:
        return {}
    return {source: name[:chosen] for source, name in zip(sources, words, strict=True)}


def words_of(name: str) -> tuple[str, ...]:
    """Return the numbers and the words of a path without its suffix."""
    stem, _ = os.path.splitext(name)
    return tuple(_WORDS.findall(stem))


def common_length(counts: Mapping[int, int], num_files: int) -> int | None:
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
