"""Find the videos, images and arrays of a data set: in folders, lists and tar files, by pattern and at addresses."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

from telecine.base.checks import argument_error
from telecine.base.terminal import with_progress
from telecine.data.ahead_index import index_ahead
from telecine.data.errors import DataError
from telecine.data.hdr import log_hdr
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.lists import LIST_SUFFIXES, Segment, read_list
from telecine.data.paths import (
    check_path,
    expand_braces,
    files_below,
    paths_matching,
    paths_of,
)
from telecine.data.samples import sample_videos
from telecine.data.source import (
    SUFFIXES,
    File,
    Skipped,
    Source,
    Span,
    TarMember,
    is_address,
    kind_of,
    resolve_source,
)
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_ARCHIVE_SUFFIX = ".tar"
_NUM_SUFFIXES = 5  # of other files, that an error names
_CHECK = "Check the path. Subfolders are searched too."


def load_spans(
    path: str | PathLike[str] | Sequence[str | PathLike[str]],
    config: ClipConfig | None = None,
    *,
    name: str = "data",
    keep_columns: bool = False,
) -> tuple[list[Span], list[Skipped]]:
    """Find and index videos, images and arrays. The index is kept for the next run.

    Args:
        path: A video, an image, an array, a folder (searched with its subfolders), a list (`.csv` or `.jsonl`), a tar
            file, or a pattern with `*`, `?`, `{000..012}` or `{a,b}` (`https://`: braces only); or
            the address of one; or several of these: a file, or a segment of one, that several name counts once.
        config: Files with larger frames than its `max_pixels` are skipped, and those with other channels. `timeout` is
            for one file, `layout` and `range` are those of arrays.
        name: Name of the argument in error messages.
        keep_columns: Whether spans have the other columns of lists, such as captions.

    Returns:
        A span for each file or line of a list, in order, and the skipped ones, which are also logged.

    Raises:
        DataError: nothing is found at `path`, nothing can be decoded, a list is not valid, or a file takes too long.
    """
    paths = paths_of(path)
    if not paths:
        raise argument_error(name, "a path", "an empty list", "Name some videos.", DataError)
    if len(paths) == 1:
        return _load_spans_at(paths[0], config, name, keep_columns)
    spans: dict[tuple[Source, int, int], Span] = {}
    skipped: list[Skipped] = []
    for one_path in paths:
        spans_of_path, skipped_of_path = _load_spans_at(one_path, config, name, keep_columns)
        skipped += skipped_of_path
        for span in spans_of_path:
            source = resolve_source(span.info.source)
            spans.setdefault((source, span.first_frame, span.last_frame), span)
    return list(spans.values()), skipped


def _load_spans_at(
    path: str, config: ClipConfig | None, name: str, keep_columns: bool
) -> tuple[list[Span], list[Skipped]]:
    """Find and index the videos, images and arrays at one path, see `load_spans`."""
    check_path(path, name)
    saved_index = SavedIndex(path, config or ClipConfig())
    segments = list(find_segments(path, saved_index, name=name, keep_columns=keep_columns))
    sources = dict.fromkeys(segment.source for segment in segments)
    infos, skipped = index_ahead(sources, saved_index)
    log_hdr(infos, saved_index.config)
    info_of = {info.source: info for info in infos}
    spans: list[Span] = []
    empty: list[Skipped] = []
    for segment in segments:
        if segment.source not in info_of:
            continue
        span = segment.as_span(info_of[segment.source])
        if isinstance(span, Skipped):
            empty.append(span)
        else:
            spans.append(span)
    if not spans:
        contract = "a list of segments that are inside their files"
        remedy = "Segments count from the first frame of each file."
        raise argument_error(name, contract, Skipped.listed(empty), remedy, DataError)
    if empty:
        logger.warning(
            "skipped %d of %d segments: %s",
            len(empty),
            len(spans) + len(empty),
            Skipped.listed(empty),
        )
    return spans, skipped + empty


def sources_of(data: str | Sequence[str] | None) -> set[Source]:
    """Return the videos, images and arrays of `TrainConfig.data`, without indexing them."""
    if data is None:
        return set(sample_videos())
    sources: set[Source] = set()
    for path in paths_of(data):
        saved_index = SavedIndex(path, ClipConfig())
        sources.update(segment.source for segment in find_segments(path, saved_index))
    return sources


def find_segments(
    path: str | PathLike[str],
    saved_index: SavedIndex,
    *,
    name: str = "data",
    keep_columns: bool = False,
) -> Iterator[Segment]:
    """Yield the segments at `path`, see `load_spans`, without indexing them.

    Args:
        path: Where the data is.
        saved_index: The index of the data, for the members of tar files. Its settings are for lists, and for arrays in
            tar files.
        name: Name of the argument in error messages.
        keep_columns: Whether segments have the other columns of lists.

    Raises:
        DataError: nothing is found at `path`, a list is not valid, or a tar file is not read in time.
    """
    files = find_files(path, name=name)
    members = _members_of([file for file in files if is_archive(file)], saved_index)
    is_empty = True
    for file in files:
        segments: Iterable[Segment]
        if file in members:
            segments = [Segment(member) for member in members[file]]
        else:
            segments = segments_of(file, saved_index.config, keep_columns=keep_columns)
        for segment in segments:
            is_empty = False
            yield segment
    if is_empty:
        raise nothing_found(path, name)


def _members_of(archives: Sequence[File], saved_index: SavedIndex) -> dict[File, list[TarMember]]:
    """Return the videos, images and arrays of tar files in order, also those whose header cannot be read.

    Raises:
        DataError: a tar file is not read in time.
    """
    members_of: dict[File, list[TarMember]] = {archive: [] for archive in archives}
    if archives:
        table, skipped = saved_index.members(archives)
        for member in (*table, *(skip.path for skip in skipped)):
            assert isinstance(member, TarMember)
            members_of[member.archive].append(member)
    for members in members_of.values():
        members.sort(key=lambda member: member.offset)
    return members_of


def find_files(path: str | PathLike[str], *, name: str = "data") -> list[File]:
    """List the videos, images, arrays, lists and tar files at `path`, each once; there may be none.

    Args:
        path: Where the data is.
        name: Name of the argument in error messages.

    Raises:
        DataError: `path`, or a part of a pattern with braces, does not exist.
    """
    check_path(path, name)
    roots: list[File] = []
    patterns = expand_braces(path)
    for pattern in with_progress(patterns, "looking for files", is_shown=len(patterns) > 1):
        matches = paths_matching(pattern)
        if not matches:
            contract = "a file, a folder, a list or tar files"
            raise argument_error(
                name, contract, f"{pattern}, which does not exist", "Check the path.", DataError
            )
        roots.extend(matches)
    files: list[File] = []
    for root in roots:
        files.extend(_media_at(root))
    return list(dict.fromkeys(files))  # a pattern may match a file and its folder


def is_archive(file: File) -> bool:
    """Return whether a file is a tar file by its suffix."""
    return file.suffix.lower() == _ARCHIVE_SUFFIX


def segments_of(
    file: File, config: ClipConfig, *, keep_columns: bool | Collection[str] = False
) -> Iterable[Segment]:
    """Return the segments of a list, or all of a video, an image or an array.

    Args:
        file: The file, which is no tar file.
        config: Its `timeout` and `group_column` are for lists.
        keep_columns: Whether segments have the other columns of lists, or the names of those they have.
    """
    if file.suffix.lower() in LIST_SUFFIXES:
        return read_list(file, config.timeout, config.group_column, keep_columns=keep_columns)
    return [Segment(file)]


def nothing_found(path: str | PathLike[str], name: str) -> Exception:
    """Return the error of a path without videos, images and arrays.

    Args:
        path: Where the data is.
        name: Name of the argument in error messages.
    """
    suffixes = ", ".join(sorted({*SUFFIXES, _ARCHIVE_SUFFIX}))
    return _nothing_found(f"a path with videos, images or arrays ({suffixes})", path, name)


def find_videos(path: str | PathLike[str], *, name: str = "data") -> list[File]:
    """List the videos and arrays at a path or an address; if a folder has none, its images.

    Args:
        path: A file, or a folder, which is searched with its subfolders. Files in it are selected by their suffix, and
            hidden ones left out.
        name: Name of the argument in error messages.

    Returns:
        The files, sorted.

    Raises:
        DataError: `path` does not exist, or is a pattern, a list or a tar file; or it is a folder without such files.
    """
    check_path(path, name)
    matches: list[File] = []
    if is_address(str(path)) or Path(path).exists():
        matches = paths_matching(str(path))
    contract = "a file or a folder"
    remedy = "Check the path. Lists, tar files and patterns are for training."
    if len(matches) != 1:
        raise argument_error(name, contract, f"{path}, which does not exist", remedy, DataError)
    root = matches[0]
    if not root.is_dir():
        if root.suffix.lower() in {*LIST_SUFFIXES, _ARCHIVE_SUFFIX}:
            raise argument_error(name, contract, str(path), remedy, DataError)
        return [root]
    files = _media_at(root, archives=False)
    if not files:
        contract = f"a folder with videos, images or arrays ({', '.join(sorted(SUFFIXES))})"
        raise _nothing_found(contract, path, name)
    videos = [file for file in files if kind_of(file) != "images"]
    if 0 < len(videos) < len(files):
        logger.warning(
            "%d images in %s are not used beside its videos", len(files) - len(videos), path
        )
    return videos or files


def _nothing_found(contract: str, path: str | PathLike[str], name: str) -> Exception:
    """Return the error of a path without data, which names what it has instead."""
    others = ignored_suffixes(path)
    got = f"{path}, which has none"
    remedy = _CHECK
    if others:
        counts = [f"{number} {suffix}" for suffix, number in others.most_common(_NUM_SUFFIXES)]
        got = f"{path}, which has {', '.join(counts)}"
    if ".gif" in others:
        remedy = "Convert animated GIFs to videos, e.g. `ffmpeg -i IN.gif OUT.mp4`."
    return argument_error(name, contract, got, remedy, DataError)


def _is_media(file: File, *, archives: bool = True) -> bool:
    """Return whether a file in a folder is data: a video, an image, an array, or with `archives` a tar file."""
    return kind_of(file) != "" or (archives and file.suffix.lower() == _ARCHIVE_SUFFIX)


def _media_at(path: File, *, archives: bool = True) -> list[File]:
    """Return the file at a path, or the data in a folder, see `_is_media`; log the suffixes of other files in it."""
    if not path.is_dir():
        return [path]
    media = []
    others = []
    for file in files_below(path):
        if _is_media(file, archives=archives):
            media.append(file)
        else:
            others.append(file)
    if others:
        counts = ", ".join(
            f"{number} {suffix}" for suffix, number in sorted(_count_suffixes(others).items())
        )
        logger.warning("ignored in %s: %s", path, counts)
    return media


def ignored_suffixes(path: str | PathLike[str]) -> Counter[str]:
    """Count by suffix the files in a folder and its subfolders that are not data, see `load_spans`."""
    others = []
    for match in paths_matching(str(path)):
        if match.is_dir():
            others += [file for file in files_below(match, log=False) if not _is_media(file)]
    return _count_suffixes(others)


def _count_suffixes(files: Iterable[File]) -> Counter[str]:
    return Counter(file.suffix.lower() or "file without suffix" for file in files)
