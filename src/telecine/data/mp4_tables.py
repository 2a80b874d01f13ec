"""What the tables of an MP4 file claim, checked before FFmpeg expands them: 2 kB can claim 4 GB of frames."""

import struct
from collections.abc import Collection, Iterator, Mapping
from typing import BinaryIO, NamedTuple

from telecine.data.errors import Deadline, DecodeError
from telecine.data.remote_read import open_bytes
from telecine.data.source import Source

MAX_FRAMES = 2**22  # a day at 48 frames a second
# Boxes in which FFmpeg looks for boxes, and the bytes before these. It looks in free space, too.
_CONTAINERS = {
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
_SIZE_AND_KIND = struct.Struct(">I4s")
_LONG_SIZE = struct.Struct(">Q")
_HEADER_BYTES = 8
_LONG_HEADER_BYTES = 16  # with a size of 64 bits
_BOX_BYTES = 112  # that are read of each box: both sizes, and all of a track's header
_WINDOW_BYTES = 4096  # that are read at once: most tables of a short video
_CHECKED_KINDS = frozenset({b"cmov", b"trun", b"stsz", b"stz2"})


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
        for box in iterate_boxes(file, begin, begin + size, _CHECKED_KINDS, deadline):
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


def iterate_boxes(
    file: BinaryIO,
    begin: int,
    end: int,
    kinds: Collection[bytes],
    deadline: Deadline,
    containers: Mapping[bytes, int] = _CONTAINERS,
) -> Iterator[Box]:
    """Yield the boxes of some kinds of an MP4 file in its order, those inside others after these.

    Args:
        file: The file, at any position.
        begin: Position of its first byte.
        end: Position after its last byte.
        kinds: The kinds, such as `b"moov"`.
        deadline: The time by which the file must be read. It is checked once for each 4096 bytes or fewer.
        containers: The kinds of boxes in which to look for boxes, with the bytes before these. By default, all in
            which FFmpeg looks.

    Raises:
        DataError: the deadline has passed.
    """
    ends = [end]  # of the boxes around the present position
    window = b""
    window_begin = begin
    while begin < end:
        while begin >= ends[-1]:
            ends.pop()
        offset = begin - window_begin
        if offset + _BOX_BYTES > len(window):
            deadline.check()
            file.seek(begin)
            window = file.read(_WINDOW_BYTES).ljust(_WINDOW_BYTES, b"\0")
            window_begin = begin
            offset = 0
        size, kind = _SIZE_AND_KIND.unpack_from(window, offset)
        header_bytes = _HEADER_BYTES
        if size == 1:
            (size,) = _LONG_SIZE.unpack_from(window, offset + _HEADER_BYTES)
            header_bytes = _LONG_HEADER_BYTES
        if kind in kinds:
            yield Box(kind, window[offset + header_bytes : offset + _BOX_BYTES])
        box_end = begin + size
        if size == 0 or box_end > ends[-1]:  # 0: up to the end of the box around it
            box_end = ends[-1]
        begin += header_bytes
        bytes_before_children = containers.get(kind)
        if bytes_before_children is not None:
            ends.append(box_end)
            begin += bytes_before_children
        elif box_end > begin:
            begin = box_end
