"""Find the videos, images and arrays of a data set: in folders, lists and tar files, by pattern and at addresses."""

import logging
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from os import PathLike
from pathlib import Path

from telecine.base.checks import argument_error, count, shorten
from telecine.base.files import OUTPUT_MARKER
from telecine.data import remote
from telecine.data.errors import DataError
from telecine.data.index import Skipped, index_videos, log_hdr
from telecine.data.index_cache import IndexCache, deepest_folder
from telecine.data.lists import LIST_SUFFIXES, Segment, read_list
from telecine.data.samples import sample_videos
from telecine.data.source import (
    PROTOCOLS,
    SUFFIXES,
    File,
    RemotePath,
    Source,
    Span,
    is_address,
    is_file_name,
    kind_of,
    resolve_source,
)
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

_ARCHIVE_SUFFIX = ".tar"
_WRITTEN = "written by telecine"  # why a folder is skipped
_NUM_SUFFIXES = 5  # of other files, that an error names
_CHECK = "Check the path. Subfolders are searched too."
_OTHER_ARRAYS = frozenset({".h5", ".hdf5", ".nc", ".mat", ".zarr"})
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters or more: one letter is a Windows drive
_RANGE = re.compile(r"(\d{1,99})\.\.(\d{1,99})")
_BRACES = re.compile(r"\{([^{}]*)\}")
# Paths that the braces of a pattern may stand for: shards of a data set are at most thousands.
_MOST_PATHS = 1_000_000


def paths_of(data: str | PathLike[str] | Sequence[str | PathLike[str]] | None) -> list[str]:
    """Return the paths of `TrainConfig.data`: none, one, or several."""
    if data is None:
        return []
    if isinstance(data, (str, PathLike)):
        return [str(data)]
    return [str(path) for path in data]


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
            the address of one; or several of these, of which the same frames count once.
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
    if len(paths) != 1:
        if not paths:
            raise argument_error(name, "a path", "an empty list", "Name some videos.", DataError)
        spans_of_parts: dict[tuple[Source, int, int], Span] = {}
        skipped_of_parts: list[Skipped] = []
        for part in paths:
            part_spans, part_skipped = load_spans(
                part, config, name=name, keep_columns=keep_columns
            )
            skipped_of_parts += part_skipped
            for part_span in part_spans:
                source = resolve_source(part_span.info.source)
                key = (source, part_span.first_frame, part_span.last_frame)
                spans_of_parts.setdefault(key, part_span)
        return list(spans_of_parts.values()), skipped_of_parts
    (path,) = paths
    _check_path(path, name)
    cache = IndexCache(path, config)
    is_complete = False
    try:
        segments = find_segments(path, cache, name=name, keep_columns=keep_columns)
        sources = dict.fromkeys(segment.source for segment in segments)
        infos, skipped = index_videos(sources, index=cache.info)
        is_complete = True
    finally:
        cache.save(
            is_complete=is_complete
        )  # also after an interrupt, so that finished work is kept
    log_hdr(infos, cache.config)
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
        sources.update(segment.source for segment in find_segments(path, IndexCache(path)))
    return sources


def find_segments(
    path: str | PathLike[str],
    cache: IndexCache,
    *,
    name: str = "data",
    keep_columns: bool = False,
) -> list[Segment]:
    """List the segments at `path`, see `load_spans`, without indexing them.

    Args:
        path: Where the data is.
        cache: The index of the data, for the members of tar files.
        name: Name of the argument in error messages.
        keep_columns: Whether segments have the other columns of lists.

    Raises:
        DataError: nothing is found at `path`, or a list is not valid.
    """
    _check_path(path, name)
    roots: list[File] = []
    for pattern in _expand(path):
        matches = _matches(pattern)
        if not matches:
            contract = "a file, a folder, a list or tar files"
            raise argument_error(
                name, contract, f"{pattern}, which does not exist", "Check the path.", DataError
            )
        roots.extend(matches)
    files: list[File] = []
    for root in roots:
        files.extend(_media_at(root))
    segments: list[Segment] = []
    for file in dict.fromkeys(files):  # each once: a pattern may match a file and its folder
        suffix = file.suffix.lower()
        if suffix in LIST_SUFFIXES:
            timeout = cache.config.timeout
            group_column = cache.config.group_column
            segments.extend(read_list(file, timeout, group_column, keep_columns=keep_columns))
        elif suffix == _ARCHIVE_SUFFIX:
            segments.extend(Segment(member) for member in cache.members(file))
        else:
            segments.append(Segment(file))
    if not segments:
        suffixes = ", ".join(sorted({*SUFFIXES, _ARCHIVE_SUFFIX}))
        raise _nothing_found(f"a path with videos, images or arrays ({suffixes})", path, name)
    return segments


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
    _check_path(path, name)
    matches: list[File] = []
    if is_address(str(path)) or Path(path).exists():
        matches = _matches(str(path))
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
    for match in _matches(str(path)):
        if match.is_dir():
            others += [file for file in files_below(match, log=False) if not _is_media(file)]
    return _count_suffixes(others)


def _count_suffixes(files: Iterable[File]) -> Counter[str]:
    return Counter(file.suffix.lower() or "file without suffix" for file in files)


def check_output(
    name: str,
    data: str | PathLike[str] | Sequence[str | PathLike[str]] | None,
    output: str | PathLike[str],
) -> None:
    """Check that a path to write to is local, and is no folder of the data; it may be inside one.

    Args:
        name: Name of the argument `output` in error messages.
        data: Where the data is, or None for the sample videos.
        output: The path to write to.

    Raises:
        ValueError: it is an address, or a folder that is searched for data.
    """
    if "://" in str(output):
        raise argument_error(
            name, "a path on this machine", repr(output), "Mount it, or copy the output afterwards."
        )
    patterns = []
    for data_path in paths_of(data):
        patterns += _expand(data_path)
    for pattern in patterns:
        path = Path(pattern)
        is_pattern = has_magic(pattern) and not is_address(pattern) and not path.is_file()
        if not path.is_dir() and not is_pattern:
            continue
        if deepest_folder(path).resolve() == Path(output).resolve():
            raise argument_error(
                name, "another folder than the data", repr(str(output)), "Name a folder inside it."
            )


def files_below(folder: File, *, log: bool = True) -> list[File]:
    """List the files in a folder and its subfolders, sorted, without hidden ones.

    Links are followed last, and each folder is listed once, so a file with two paths gets the one without a link.

    Args:
        folder: The folder.
        log: Whether to log the subfolders that are left out: telecine wrote them, or they cannot be read.
    """
    if isinstance(folder, RemotePath):
        return list(remote.list_files(folder))
    files: list[Path] = []
    skipped: list[Skipped] = []
    visited: set[tuple[int, int]] = set()
    pending = deque([folder])  # the folder, then links to folders

    def skip_unreadable(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename), str(error.strerror)))

    while pending:
        for current, subfolders, names in os.walk(pending.popleft(), onerror=skip_unreadable):
            path = Path(current)
            if OUTPUT_MARKER in names and path != folder:
                skipped.append(Skipped(path, _WRITTEN))
                subfolders.clear()
                continue
            status = os.stat(current)
            identity = (status.st_dev, status.st_ino)
            if identity in visited:
                subfolders.clear()
                continue
            visited.add(identity)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            pending.extend(path / name for name in subfolders if (path / name).is_symlink())
            files.extend(path / name for name in names if not name.startswith("."))
    if log:
        _log_skipped(folder, sorted(skipped, key=lambda skip: str(skip.path)))
    files.sort()
    return [file for file in files if file.is_file()]


def _log_skipped(root: File, skipped: Sequence[Skipped]) -> None:
    if skipped:
        logger.warning(
            "skipped %s in %s: %s", count(len(skipped), "folder"), root, Skipped.listed(skipped)
        )


def _check_path(path: str | PathLike[str], name: str) -> None:
    text = str(path)
    if not is_file_name(text):
        remedy = "Check the spelling, or the variable of the shell."
        raise argument_error(name, "a path", shorten(repr(text)), remedy, DataError)
    if _URL.match(text) and not is_address(text) and not Path(text).exists():
        protocols = ", ".join(f"{protocol}://" for protocol in PROTOCOLS)
        contract = f"a path, or an address that begins with {protocols}"
        raise argument_error(
            name, contract, text, "Download the files, or mount the bucket as a folder.", DataError
        )
    if Path(text).suffix.lower() in _OTHER_ARRAYS:
        remedy = "Save each clip with `numpy.save`, e.g. `numpy.save('a.npy', h5py.File('a.h5')['clips'][0])`."
        raise argument_error(name, "arrays as .npy or .npz", text, remedy, DataError)
    if _COMPRESSED.search(text):
        contract = (
            "an uncompressed tar file, because members are read without unpacking the archive"
        )
        raise argument_error(
            name, contract, text, "Repack it without compression. Videos hardly shrink.", DataError
        )


def _matches(pattern: str) -> list[File]:
    """Return the file or folder at a path or an address, or those that a pattern without braces matches."""
    if is_address(pattern):
        return list(remote.match(pattern))
    if Path(pattern).exists():
        return [Path(pattern)]
    if not has_magic(pattern):
        return []
    paths = [Path(path) for path in sorted(glob(pattern, recursive=True))]
    return _without_outputs(paths, deepest_folder(Path(pattern)))


def _without_outputs(paths: Sequence[Path], root: Path) -> list[File]:
    """Leave out paths in folders below `root` that telecine wrote, and log these folders."""
    folders: set[Path] = set()
    for path in paths:
        folders.update(folder for folder in (path, *path.parents) if folder.is_relative_to(root))
    outputs = sorted(folder for folder in folders - {root} if (folder / OUTPUT_MARKER).exists())
    _log_skipped(root, [Skipped(folder, _WRITTEN) for folder in outputs])
    return [path for path in paths if not any(path.is_relative_to(folder) for folder in outputs)]


def _expand(path: str | PathLike[str]) -> list[str]:
    """Expand the braces of a pattern, unless a file has this name."""
    if Path(path).exists():
        return [str(path)]
    return _expand_braces(str(path))


def _expand_braces(pattern: str) -> list[str]:
    """Expand the braces of a pattern: `{08..10}` to 08, 09 and 10, and `{a,b}` to a and b.

    Raises:
        DataError: They stand for more than `_MOST_PATHS` paths.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    head = pattern[: match.start()]
    tails = _expand_braces(pattern[match.end() :])
    choices = match[1].split(",")
    num_choices = len(choices)
    bounds = _RANGE.fullmatch(match[1])
    if bounds is not None:
        first, last = bounds.groups()
        num_choices = 1 + int(last) - int(first)
    if num_choices * len(tails) > _MOST_PATHS:
        contract = f"a pattern whose braces stand for at most {_MOST_PATHS} paths"
        raise argument_error(
            "data", contract, shorten(repr(pattern)), "Use `*`, or a list of files.", DataError
        )
    if bounds is not None:
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [f"{head}{choice}{tail}" for choice in choices for tail in tails]
