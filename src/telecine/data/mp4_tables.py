"""What the tables of an MP4 file claim, checked before FFmpeg expands them: 2 kB can claim 4 GB of frames."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from telecine.data.errors import Deadline, DecodeError
from telecine.data.source import Source, TarMember, open_file

MAX_FRAMES = 2**22  # a day at 48 frames a second
# Boxes with boxes inside, after some bytes. FFmpeg looks for them in free space, too.
_PARENTS = dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts", b"dinf"), 0)
_PARENTS |= dict.fromkeys((b"udta", b"free", b"skip", b"hoov", b"wave", b"tref"), 0) | {b"meta": 4}


def check_tables(source: Source, deadline: Deadline) -> None:
    """Raise a `DecodeError` if the tables of a local file claim more frames than it can have, or are compressed.

    A file of another format has no such tables.
    """
    with open_file(source) as file:
        begin, size = 0, os.fstat(file.fileno()).st_size
        if isinstance(source, TarMember):
            begin, size = source.offset, source.size
        claimed = 0
        for kind, content in deadline.limit(_tables(file, begin, begin + size)):
            if kind == b"cmov":
                raise DecodeError(f"{source}: its tables are compressed")
            num_samples, num_bytes = _claimed(kind, content)
            claimed += num_bytes
            if claimed > size or num_samples > MAX_FRAMES:
                raise DecodeError(f"{source}: its tables claim {num_samples} frames in {size} bytes")


def _claimed(kind: bytes, content: bytes) -> tuple[int, int]:
    """Return the number of samples of different sizes in a table, and the fewest bytes that all its samples take."""
    if kind == b"trun":
        (num_samples,) = struct.unpack_from(">I", content, 4)
        return num_samples, num_samples
    if kind not in (b"stsz", b"stz2"):
        return 0, 0
    size, num_samples = struct.unpack_from(">II", content, 4)
    if kind == b"stsz" and size > 0:
        # Old sound: up to six samples "of a byte" in one.
        return 0, num_samples * size if size > 1 else num_samples // 8
    return num_samples, num_samples // 2  # a size has 4 bits or more


def _tables(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind of each box, and its first 12 bytes or more; zeros follow the end of the file."""
    ends = [end]
    while begin < end:
        while begin >= ends[-1]:
            ends.pop()
        file.seek(begin)
        content = file.read(28).ljust(28, b"\0")
        size, kind = struct.unpack_from(">I4s", content)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", content, 8), 16
        yield kind, content[header:]
        stop = min(begin + (size or end), ends[-1])
        if kind in _PARENTS:
            ends.append(stop)
            stop = begin + header + _PARENTS[kind]
        begin = max(stop, begin + header)
