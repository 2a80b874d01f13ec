"""From a place that holds data to the frames in it that can be trained on."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path

from telecine.data.errors import DataError
from telecine.data.find import find_stretches
from telecine.data.index import Skipped, index_videos, listed
from telecine.data.remembered import RememberedIndex
from telecine.data.split import Span
from telecine.shapes import argument_error

logger = logging.getLogger(__name__)


def load_spans(path: str | PathLike[str], *, name: str = "data") -> tuple[list[Span], list[Skipped]]:
    """Find and index the videos and images at `path`, remembering the index for the next start.

    Args:
        path: a video, an image, a folder, a list (`.csv` or `.jsonl`), a tar file, or a pattern for several of them.
        name: what an error calls it.

    Returns:
        The frames of each video or image, or of each line of a list, in order; and the files and lines passed over,
        which are logged as well.

    Raises:
        DataError: there is nothing at `path`, or none of it is decodable; or a list is not as it should be.
    """
    index = RememberedIndex(Path(path))
    stretches = find_stretches(path, index.members, name=name)
    try:
        infos, skipped = index_videos(dict.fromkeys(stretch.source for stretch in stretches), index=index.info)
    finally:
        index.save()  # what is indexed when a long indexing is interrupted need not be done again
    found = {info.path: info for info in infos}
    present = [stretch for stretch in stretches if stretch.source in found]
    spans = [stretch.span_in(found[stretch.source]) for stretch in present]
    empty = [stretch for stretch, span in zip(present, spans, strict=True) if span is None]
    passed_over = [Skipped(stretch.source, stretch.why_empty(found[stretch.source])) for stretch in empty]
    if len(passed_over) == len(present):
        contract = "a list of stretches with frames inside their videos"
        remedy = "A list counts from the first frame of each video."
        raise argument_error(name, contract, listed(passed_over), remedy, DataError)
    if passed_over:
        logger.warning("skipped %d of %d stretches: %s", len(passed_over), len(present), listed(passed_over))
    return [span for span in spans if span is not None], skipped + passed_over
