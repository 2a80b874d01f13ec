"""Videos, images and arrays in tar files, which are read in place."""

import logging
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from telecine.data.errors import Deadline
from telecine.data.fingerprint import Fingerprint
from telecine.data.remote_cache import max_cache_bytes
from telecine.data.remote_read import Reads, open_bytes
from telecine.data.source import File, TarMember, is_hidden, kind_of, open_file

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Headers with a long name or with attributes of the next member. Python reads them whole.
_EXTENSIONS = frozenset({b"L", b"K", b"x", b"g", b"X"})
_MAX_EXTENSION = 2**20  # bytes
# A tar file at an address is fetched whole if its first members are smaller on average: a request for each header
# would take longer.
_SMALL_MEMBER = 2**18
_NUM_SAMPLED = 16


class _TarEntry(tarfile.TarInfo):
    """A header of a tar file. Long headers are refused before Python reads them whole."""

    @classmethod
    def frombuf(cls, *arguments: Any, **options: Any) -> "_TarEntry":
        entry = super().frombuf(*arguments, **options)
        if entry.type in _EXTENSIONS and not 0 <= entry.size <= _MAX_EXTENSION:
            raise tarfile.ReadError(f"a header with a size of {entry.size} bytes")
        return entry


def tar_members(archive: File, opened: BinaryIO | None = None) -> Iterator[TarMember]:
    """Yield the videos, images and arrays of a tar file in the order of the archive. Only headers are read.

    Args:
        archive: The tar file.
        opened: Its bytes, which stay open. By default a local file is opened, and closed at the end.

    Raises:
        OSError: the file cannot be read.
        tarfile.TarError: it is not a tar file, or is compressed; or, after some members, it is truncated or sparse.
    """
    if opened is None:
        assert isinstance(archive, Path), "a tar file at an address is opened before"
        with open_file(archive) as file:
            yield from tar_members(archive, file)
        return
    with tarfile.open(fileobj=opened, mode="r:", tarinfo=_TarEntry) as tar:
        for entry in tar:
            tar.members.clear()  # type: ignore[attr-defined]  # Python would keep all entries
            if entry.size < 0:  # Python would read the same headers for ever
                raise tarfile.ReadError(f"a member with a size of {entry.size} bytes")
            member = TarMember(archive, entry.name, entry.offset_data, entry.size)
            if not entry.isreg() or not kind_of(member) or is_hidden(entry.name):
                continue
            if entry.issparse():
                raise tarfile.ReadError(f"{entry.name} has holes, by `tar -S`; pack it without")
            yield member


def scan_tar(
    archive: File, deadline: Deadline, read: Callable[[TarMember, BinaryIO], T]
) -> tuple[list[T], bool]:
    """Read something of the videos, images and arrays of a tar file in one pass, up to any error, which is logged.

    Args:
        archive: The tar file.
        deadline: The time by which it must be read.
        read: The function that reads a member from the opened tar file.

    Returns:
        What it returns of each member, and false if an error of the system ended the pass: another one may read more.

    Raises:
        DataError: the tar file is not read in time.
    """
    results: list[T] = []
    try:
        reads: Reads = "whole" if _has_small_members(archive, deadline) else "headers"
        with open_bytes(archive, deadline, reads=reads) as opened:
            for member in deadline.limit(tar_members(archive, opened.file)):
                results.append(read(member, opened.file))
    except OSError as error:
        text = "%s: cannot be read after its first %d members: %s"
        logger.warning(text, archive, len(results), error)
        return results, False
    except tarfile.TarError as error:
        logger.warning("%s: damaged after its first %d members: %s", archive, len(results), error)
    return results, True


def _has_small_members(archive: File, deadline: Deadline) -> bool:
    """Return whether to fetch a tar file whole to find its members, because their headers are close to each other.

    Args:
        archive: The tar file. One on this machine is not fetched.
        deadline: The time by which its first members must be found.
    """
    if isinstance(archive, Path) or Fingerprint.of(archive).size > max_cache_bytes():
        return False
    with open_bytes(archive, deadline, reads="headers") as opened:
        for number, member in enumerate(tar_members(archive, opened.file), start=1):
            if member.offset >= _NUM_SAMPLED * _SMALL_MEMBER:
                return False
            if number == _NUM_SAMPLED:
                return True
    return False
