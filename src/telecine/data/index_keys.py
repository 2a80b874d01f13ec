"""Keys of files in an index: numbers that change if a file changes, and stay if the data set is moved."""

import hashlib
import os
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from telecine.data.fingerprint import Fingerprint
from telecine.data.index_paths import index_folders
from telecine.data.paths import deepest_folder
from telecine.data.source import Source, TarMember, is_address

MAX_KEY = 2**63 - 1
# 2**64 divided by the golden ratio, for Fibonacci hashing: products with offsets, multiples of 512, differ in all bits.
_FIBONACCI = 0x9E3779B97F4A7C15


def index_root(data: str | PathLike[str]) -> str:
    """Return the folder that names of files in an index are relative to.

    Args:
        data: A path, a pattern or an address, as `telecine.data.load_spans`.
    """
    if is_address(str(data)):
        return str(index_folders(data)[0].parent)
    return str(deepest_folder(Path(data)))


def key_of(source: Source, fingerprint: Fingerprint, root: str) -> int:
    """Return the key of a source, in 63 bits: a hash of its path relative to the data and of its fingerprint.

    Args:
        source: The source.
        fingerprint: That of its file.
        root: The folder of the data, see `index_root`.
    """
    if isinstance(source, TarMember):
        archive_key = key_of(source.archive, fingerprint, root)
        return int(keys_of_members(np.array([archive_key]), np.array([source.offset]))[0])
    name = str(source)
    prefix = os.path.join(root, "")
    if name.startswith(prefix):
        name = name.removeprefix(prefix)
    elif not is_address(name):
        name = os.path.relpath(name, root)
    text = f"{name}\n{tuple(fingerprint)}"
    digest = hashlib.blake2b(os.fsencode(text), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keys_of_members(
    archive_keys: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return a number for each member of tar files, which depends on its place.

    Args:
        archive_keys: The key of the tar file of each member.
        offsets: Of the first byte of each member.
    """
    spread = offsets.astype(np.uint64) * np.uint64(_FIBONACCI) & np.uint64(MAX_KEY)
    return archive_keys ^ spread.astype(np.int64)
