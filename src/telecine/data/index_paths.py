"""Where indices are kept: hidden beside the data, or in the user's cache folder."""

import hashlib
import os
from os import PathLike
from pathlib import Path

from telecine.base.files import user_cache_folder
from telecine.data.paths import deepest_folder
from telecine.data.source import File, RemotePath, is_address

_SUFFIX = ".telecine-index"
_FOLDER_SUFFIX = ".d"


def index_folders(data: str | PathLike[str]) -> list[Path]:
    """Return the folders in which the index of a data set may be: hidden beside the data, and in the user's cache.

    The first one is written to. That is the one in the cache if the data is at an address or cannot be written to.
    Other runs may have written to the other one: with more, or with fewer permissions.
    """
    cached = _path_in_cache(data)
    beside = _path_beside(data)
    if beside is None:
        paths = [cached]
    elif os.access(beside.parent, os.W_OK):
        paths = [beside, cached]
    else:
        paths = [cached, beside]
    return [path.with_name(path.name + _FOLDER_SUFFIX) for path in paths]


def single_index(data: str | PathLike[str]) -> Path:
    """Return the file in which earlier versions of telecine have kept the index of a data set."""
    folder = index_folders(data)[0]
    return folder.with_name(folder.name.removesuffix(_FOLDER_SUFFIX))


def sidecar_paths(archive: File) -> tuple[File, Path]:
    """Return where the sidecar of a tar file may be: beside it, or in the user's cache folder."""
    name = f".{archive.name}{_SUFFIX}"
    beside: File
    if isinstance(archive, RemotePath):
        identity = archive.url
        beside = RemotePath(f"{archive.url.rpartition('/')[0]}/{name}")
    else:
        identity = str(archive.absolute())
        beside = archive.with_name(name)
    return beside, user_cache_folder() / "indices" / f"{_short_hash(identity)}{name}"


def _path_beside(data: str | PathLike[str]) -> Path | None:
    if is_address(str(data)):
        return None
    path = Path(data)
    root = deepest_folder(path)
    if root == path:
        return root / _SUFFIX
    return root / f".{_short_hash(os.path.relpath(path, root))}{_SUFFIX}"


def _path_in_cache(data: str | PathLike[str]) -> Path:
    identity = str(data) if is_address(str(data)) else str(Path(data).absolute())
    return user_cache_folder() / "indices" / f"{_short_hash(identity)}{_SUFFIX}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
