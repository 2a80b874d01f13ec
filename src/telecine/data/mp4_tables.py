"""What the tables of an MP4 file claim, checked before FFmpeg expands them: 2 kB can claim 4 GB of frames."""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from telecine.data.errors import Deadline, DecodeError
from telecine.data.remote_read import open_bytes
from telecine.data.source import Source

MAX_FRAMES = 2**22  # a day at 48 frames a second
# Boxes that contain boxes, and the bytes before these. FFmpeg looks for boxes in free space, too.
_BYTES_BEFORE_CHILDREN = {
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"moof": 0,
    b"traf": 0,
    b"mvex": 0,
    b"edts": 0,
    b"dinf": 0,
    b"udta": 0,
    b"free": 0,
    b"skip": 0,
    b"hoov": 0,
    b"wave": 0,
    b"tref": 0,
    b"meta": 4,
}
_HEADER_BYTES = 8
_LONG_HEADER_BYTES = 16  # with a size of 64 bits
_CONTENT_BYTES = 96  # that are read of each box: all of a track's header


class Box(NamedTuple):
    """A box of an MP4 file. Tables are boxes."""

    kind: bytes
    content: bytes  # its first 96 bytes or more; zeros follow the end of the file


def check_tables(source: Source, deadline: Deadline) -> None:
    """Check that the tables of a file claim no more frames than it can have, and are not compressed.

    A file of another format has no such tables.

    Raises:
        DecodeError: a table claims too many frames or is compressed.
        DataError: the deadline has passed.
    """
    with open_bytes(source, deadline) as (file, begin, size):
        claimed_bytes = 0
        for box in deadline.limit(iterate_boxes(file, begin, begin + size)):
            if box.kind == b"cmov":
                raise DecodeError(f"{source}: its tables are compressed")
            num_samples, num_bytes = _claimed(box)
            claimed_bytes += num_bytes
            if claimed_bytes > size or num_samples > MAX_FRAMES:
                raise DecodeError(
                    f"{source}: its tables claim {num_samples} frames in {size} bytes"
                )


def _claimed(box: Box) -> tuple[int, int]:
    """Return the number of samples of different sizes in a table, and the fewest bytes that all its samples take."""
    if box.kind == b"trun":
        (num_samples,) = struct.unpack_from(">I", box.content, 4)
        return num_samples, num_samples
    if box.kind not in (b"stsz", b"stz2"):
        return 0, 0
    sample_size, num_samples = struct.unpack_from(">II", box.content, 4)
    if box.kind == b"stz2" or sample_size == 0:
        return num_samples, num_samples // 2  # a size has 4 bits or more
    if sample_size == 1:
        return 0, num_samples // 8  # old sound: up to six samples "of a byte" in one
    return 0, num_samples * sample_size


def iterate_boxes(file: BinaryIO, begin: int, end: int) -> Iterator[Box]:
    """Yield the boxes of an MP4 file in its order, those inside others after these.

    Args:
        file: The file, at any position.
        begin: Position of its first byte.
        end: Position after its last byte.
    """
    ends = [end]  # of the boxes around the present position
    while begin < end:
        while begin >= ends[-1]:
            ends.pop()
        file.seek(begin)
        num_bytes = _LONG_HEADER_BYTES + _CONTENT_BYTES
        content = file.read(num_bytes).ljust(num_bytes, b"\0")
        size, kind = struct.unpack_from(">I4s", content)
        header_bytes = _HEADER_BYTES
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, 8)
            header_bytes = _LONG_HEADER_BYTES
        yield Box(kind, content[header_bytes:])
        if size == 0:  # up to the end of the file
            size = end
        stop = min(begin + size, ends[-1])
        if kind in _BYTES_BEFORE_CHILDREN:
            ends.append(stop)
            stop = begin + header_bytes + _BYTES_BEFORE_CHILDREN[kind]
        begin = max(stop, begin + header_bytes)
