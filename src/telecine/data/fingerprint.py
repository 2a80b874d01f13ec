"""Numbers that tell whether a file has changed since it was indexed, without reading it."""

import hashlib
import os
from typing import NamedTuple

from telecine.data.errors import Deadline
from telecine.data.remote import look_up
from telecine.data.source import File, RemotePath, Source, TarMember, file_of, kind_of


class Fingerprint(NamedTuple):
    """What tells whether a file has changed."""

    size: int
    """In bytes."""
    version: int
    """The time of change in ns; of a file at an address 60 bits of a hash of its server's version."""

    @classmethod
    def of(cls, file: File) -> "Fingerprint":
        """Return the fingerprint of a file.

        Raises:
            OSError: the file does not exist.
        """
        if isinstance(file, RemotePath):
            file = look_up(file)
            version = hashlib.sha256(os.fsencode(file.version)).hexdigest()
            return cls(file.size or 0, int(version[:15], 16))
        status = file.stat()
        return cls(status.st_size, status.st_mtime_ns)

    def of_source(self, source: Source) -> tuple[int, ...]:
        """Return what tells whether a source in the file has changed: of a member its offset and its size, too."""
        if isinstance(source, TarMember):
            return self.size, self.version, source.offset, source.size
        return self.size, self.version


UNKNOWN = Fingerprint(-1, 0)
"""That of a file that a list describes, of which no server is asked."""


def fingerprint_of(source: Source) -> tuple[int, ...]:
    """Return the fingerprint of a source, see `Fingerprint.of_source`, as plain integers: others save or hash it."""
    return Fingerprint.of(file_of(source)).of_source(source)


def look_up_source(source: Source, deadline: Deadline) -> tuple[Source, Fingerprint] | None:
    """Return a source whose index can be kept, as it is now, and the fingerprint of its file.

    Args:
        source: The source. One at an address is looked up.
        deadline: The time by which its server must answer.

    Returns:
        None for an array, whose index is not kept, and for a source that cannot be looked up: `index_video` raises an
        error with the reason.
    """
    if kind_of(source) == "arrays":
        return None
    try:
        if isinstance(source, RemotePath):
            source = look_up(source, deadline)
        return source, Fingerprint.of(file_of(source))
    except OSError:
        return None


def num_bytes(source: Source) -> int:
    """Return the size of a file or of a member of a tar file."""
    return source.size if isinstance(source, TarMember) else Fingerprint.of(source).size
