"""Numbers that tell whether a file has changed since it was indexed, without reading it."""

import hashlib
import os
from typing import TypeAlias

from telecine.data.errors import Deadline
from telecine.data.remote import look_up
from telecine.data.source import RemotePath, Source, TarMember, kind_of
from telecine.settings import ClipConfig

Fingerprint: TypeAlias = tuple[int, ...]  # see `fingerprint_of`


def fingerprint_of(source: Source) -> Fingerprint:
    """Return integers that identify the content of a source: size, and time of change in ns or a hash of its version.

    A tar member adds its offset and size.
    """
    if isinstance(source, TarMember):
        return *fingerprint_of(source.archive), source.offset, source.size
    if isinstance(source, RemotePath):
        file = look_up(source)
        version = hashlib.sha256(os.fsencode(file.version)).hexdigest()
        return file.size or 0, int(version[:15], 16)
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def look_up_source(source: Source, config: ClipConfig) -> tuple[Source, Fingerprint] | None:
    """Return a source whose index can be kept, as it is now, and its fingerprint.

    Args:
        source: The source. One at an address is looked up.
        config: Its `timeout` limits the time.

    Returns:
        None for an array, whose index is not kept, and for a source that cannot be looked up: `index_video` raises an
        error with the reason.
    """
    if kind_of(source) == "arrays":
        return None
    try:
        if isinstance(source, RemotePath):
            source = look_up(source, Deadline(source, config.timeout))
        return source, fingerprint_of(source)
    except OSError:
        return None


def num_bytes(source: Source) -> int:
    """Return the size of a file or of a member of a tar file."""
    return source.size if isinstance(source, TarMember) else fingerprint_of(source)[0]
