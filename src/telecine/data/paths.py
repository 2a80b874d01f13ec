"""The files and folders at a path: an address, a pattern with `*`, `?` or braces, or a folder with its subfolders."""

import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from itertools import compress
from operator import not_
from os import PathLike
from pathlib import Path

from telecine.base.checks import argument_error, count, first_few, shorten
from telecine.base.files import OUTPUT_MARKER
from telecine.data import remote
from telecine.data.errors import DataError
from telecine.data.source import PROTOCOLS, File, RemotePath, Skipped, is_address, is_file_name

logger = logging.getLogger(__name__)

_WRITTEN = "written by telecine"  # why a folder is skipped
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


def deepest_folder(data: Path) -> Path:
    """Return the deepest folder above everything that a path or a pattern matches."""
    if data.is_dir():
        return data
    return next(parent for parent in data.parents if not has_magic(str(parent)) and parent.is_dir())


def real_paths(paths: Iterable[str]) -> Iterator[str]:
    """Yield paths without links and `..`, so that all names of one file are equal; addresses stay as they are."""
    real_folders: dict[str, str] = {}
    for path in paths:
        if is_address(path):
            yield path
        elif os.path.islink(path):
            yield os.path.realpath(path)
        else:
            folder, name = os.path.split(path)
            if folder not in real_folders:
                real_folders[folder] = os.path.realpath(folder)
            yield os.path.join(real_folders[folder], name)


def files_below(folder: File, *, log: bool = True) -> list[File]:
    """List the files in a folder and its subfolders, sorted, without hidden ones.

    Links are followed last, and each folder is listed once, so a file with two paths gets the one without a link.

    Args:
        folder: The folder.
        log: Whether to log the subfolders that are left out: telecine wrote them, or they cannot be read; and links
            that lead to nothing.
    """
    if isinstance(folder, RemotePath):
        listed, outputs = remote.list_files(folder)
        if log:
            _log_skipped(folder, [Skipped(RemotePath(output), _WRITTEN) for output in outputs])
        return list(listed)
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
    files.sort()
    are_regular = [file.is_file() for file in files]
    if log:
        _log_skipped(folder, sorted(skipped, key=lambda skip: str(skip.path)))
        _log_broken_links(folder, compress(files, map(not_, are_regular)))
    return list(compress(files, are_regular))


def _log_broken_links(root: File, paths: Iterable[Path]) -> None:
    broken = [str(path) for path in paths if path.is_symlink() and not path.exists()]
    if broken:
        text = "skipped %s in %s, which lead to no file: %s"
        logger.warning(text, count(len(broken), "link"), root, first_few(broken))


def _log_skipped(root: File, skipped: Sequence[Skipped]) -> None:
    if skipped:
        logger.warning(
            "skipped %s in %s: %s", count(len(skipped), "folder"), root, Skipped.listed(skipped)
        )


def check_path(path: str | PathLike[str], name: str) -> None:
    """Check that a path is spelled as one of data can be.

    Raises:
        DataError: it is no path or address, or has the suffix of a format that is not read.
    """
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


def paths_matching(pattern: str) -> list[File]:
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


def expand_braces(path: str | PathLike[str]) -> list[str]:
    """Expand the braces of a pattern, unless a file has this name."""
    if Path(path).exists():
        return [str(path)]
    return _expansions(str(path))


def _expansions(pattern: str) -> list[str]:
    """Expand the braces of a pattern: `{08..10}` to 08, 09 and 10, and `{a,b}` to a and b.

    Raises:
        DataError: They stand for more than `_MOST_PATHS` paths.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    head = pattern[: match.start()]
    tails = _expansions(pattern[match.end() :])
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
