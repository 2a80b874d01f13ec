"""Finding videos and images: in folders, lists, tar files, and by patterns."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from glob import glob, has_magic
from itertools import chain
from os import PathLike
from pathlib import Path

from telecine.data.errors import DataError
from telecine.data.lists import LIST_SUFFIXES, Stretch, read_list
from telecine.data.source import IMAGE_SUFFIXES, VIDEO_SUFFIXES, TarMember, is_footage, is_hidden, is_image
from telecine.shapes import argument_error

ARCHIVE_SUFFIXES = frozenset({".tar"})
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
# At least two letters, so that a drive of Windows is none.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")

Members = Callable[[Path], Iterable[TarMember]]


def find_videos(path: str | PathLike[str], *, name: str = "data") -> list[Path]:
    """List the video files at `path`: itself if it is a file, else those in the folder and below, sorted.

    In a folder, files are told by their suffix, upper or lower case, and hidden ones are left out. `name` is what an
    error calls the path.

    Raises:
        DataError: there is nothing at `path`, or the folder holds no video.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise argument_error(
            name, "a video file or a folder", f"{path}, which does not exist", "Check the path.", DataError
        )
    videos = [file for file in files_below(path) if is_footage(file) and not is_image(file)]
    if not videos:
        contract = f"a folder that holds videos ({', '.join(sorted(VIDEO_SUFFIXES))})"
        remedy = "Check the path; folders below it are searched too."
        raise argument_error(name, contract, f"{path}, which holds none", remedy, DataError)
    return videos


def find_stretches(path: str | PathLike[str], members: Members, *, name: str = "data") -> list[Stretch]:
    """List what there is to train on at `path`.

    Args:
        path: a video, an image, a folder (searched with those below it), a list (`.csv` or `.jsonl`), a tar file, or
            a pattern with `*`, `?`, `{000..012}` or `{a,b}` that names several of them.
        members: what lists the videos and images of a tar file.
        name: what an error calls the path.

    Raises:
        DataError: there is nothing at `path`, or nothing to train on; or a list is not as it should be.
    """
    _check_local(str(path), name)
    places = [Path(path)] if Path(path).exists() else _matching(str(path), name)
    stretches = list(chain.from_iterable(_at(place, members) for place in places))
    if not stretches:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES | ARCHIVE_SUFFIXES))
        remedy = "Check the path; folders below it are searched too."
        raise argument_error(name, f"a place that holds videos or images ({suffixes})", f"{path}", remedy, DataError)
    return stretches


def _at(path: Path, members: Members) -> Iterator[Stretch]:
    suffix = path.suffix.lower()
    if path.is_dir():
        for file in files_below(path):
            if is_footage(file) or file.suffix.lower() in ARCHIVE_SUFFIXES:
                yield from _at(file, members)
    elif suffix in LIST_SUFFIXES:
        yield from read_list(path)
    elif suffix in ARCHIVE_SUFFIXES:
        yield from map(Stretch, members(path))
    else:
        yield Stretch(path)


def files_below(folder: Path) -> list[Path]:
    """List the files in a folder and below it, sorted, without hidden ones.

    Links to folders are followed, but no folder is listed twice: links come after what lies in the folder itself.
    """
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    pending = deque([folder])
    while pending:
        for place, folders, names in os.walk(pending.popleft()):
            status = os.stat(place)
            folders[:] = sorted(name for name in folders if not is_hidden(Path(name)))
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            pending += [path for name in folders if (path := Path(place, name)).is_symlink()]
            files += [Path(place, name) for name in names if not is_hidden(Path(name))]
    return sorted(file for file in files if file.is_file())


def _check_local(path: str, name: str) -> None:
    if _URL.match(path) and not Path(path).exists():
        contract = (
            "on a disk of this machine, because clips are read in any order, so that a run can be resumed exactly"
        )
        remedy = "Download the files, or mount the bucket as a folder."
        raise argument_error(name, contract, f"{path}, a stream", remedy, DataError)
    if _COMPRESSED.search(path):
        contract = "an uncompressed tar file, of which a part can be read by itself"
        remedy = "Videos hardly shrink: pack them again without compression."
        raise argument_error(name, contract, path, remedy, DataError)


def _matching(pattern: str, name: str) -> list[Path]:
    places: list[Path] = []
    for part in expand_braces(pattern):
        found = sorted(glob(part, recursive=True)) if has_magic(part) else [part]
        if not found or not Path(found[0]).exists():
            got = f"{part}, which does not exist"
            raise argument_error(name, "a video file, a folder, a list or tar files", got, "Check the path.", DataError)
        places += map(Path, found)
    return places


def expand_braces(pattern: str) -> list[str]:
    """Return what a pattern stands for: `{08..10}` for 08, 09 and 10, `{a,b}` for a and b."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    heads = [pattern[: match.start()] + choice for choice in _choices(match.group(1))]
    tails = expand_braces(pattern[match.end() :])
    return [head + tail for head in heads for tail in tails]


def _choices(inside: str) -> list[str]:
    bounds = _RANGE.fullmatch(inside)
    if bounds is None:
        return inside.split(",")
    first, last = bounds.groups()
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
