"""What the header of a container says about its frames: their number, rate and size, without reading its packets."""

import hashlib
import struct
from typing import NamedTuple

import numpy as np

from telecine.data.arrays import index_array
from telecine.data.decode import VIDEO_ERRORS, open_video
from telecine.data.errors import Deadline, DecodeError, decode_errors
from telecine.data.index import index_image, index_video
from telecine.data.mp4_tables import MAX_FRAMES, check_tables, iterate_boxes
from telecine.data.remote_read import SourceBytes, open_bytes
from telecine.data.source import (
    Source,
    VideoInfo,
    check_frame,
    kind_of,
)
from telecine.settings import ClipConfig

_MP4_KINDS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # of the first box
_FRAGMENT_KINDS = frozenset({b"mvex", b"moof"})
_TRACK_KINDS = _FRAGMENT_KINDS | {b"trak", b"tkhd", b"mdhd", b"hdlr", b"stts", b"stsz", b"stz2"}
# Boxes in which these are, and the bytes before them. FFmpeg looks for a `moov` in free space, too.
_TRACK_CONTAINERS = dict.fromkeys(
    (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"free", b"skip", b"hoov"), 0
)
# Formats whose header states the duration. Of others, FFmpeg guesses it from timestamps, which may restart.
_WITH_DURATION = frozenset({"matroska", "webm", "mov", "mp4", "avi", "flv", "asf", "ogg"})
_DIGEST_BYTES = 4096  # at the beginning and at the end of a file


class Header(NamedTuple):
    """What the header of a file says. The number of frames may be an estimate."""

    num_frames: int
    fps: float  # 1 for an image
    width: int
    height: int
    is_image: bool = False
    digest: int = 0
    """A hash of the size, the beginning and the end of the file, in 63 bits. 0 for a file that a list describes, which
    is not read, and for arrays, many of which begin and end with zeros."""

    @classmethod
    def of_row(cls, row: np.void) -> "Header":
        """Return a row of type `HEADER` as a header. `rows[number] = header` does the reverse."""
        return cls(*row.item())

    @classmethod
    def of(cls, info: VideoInfo) -> "Header":
        """Return the header of an indexed source."""
        return cls(info.num_frames, info.fps, info.width, info.height, info.is_image)


NO_HEADER = Header(0, 1.0, 1, 1)
"""The header of a file that has no frames here: it was not read yet, cannot be read, or is refused."""
_TYPES = {
    "num_frames": np.int64,
    "fps": np.float64,
    "width": np.int32,
    "height": np.int32,
    "is_image": np.bool_,
    "digest": np.int64,
}
HEADER = np.dtype([(name, _TYPES[name]) for name in Header._fields])
"""A header as a row of a table: rows and headers are converted by the order of their fields, see `Header.of_row`."""


def read_header(source: Source, config: ClipConfig) -> Header:
    """Read the header of a video, an image or an array.

    MP4 and MOV have tables with the number of frames. Other containers state it, or a duration and a frame rate. A
    video that states neither, such as MPEG-TS, is indexed.

    Args:
        source: The file.
        config: Its `timeout` is for this file.

    Raises:
        DecodeError: the file cannot be read, or has no header of a video.
        DataError: it is not read within `config.timeout` seconds.
    """
    deadline = Deadline(source, config.timeout)
    if kind_of(source) == "arrays":
        return Header.of(index_array(source, config, deadline))
    with decode_errors(source, VIDEO_ERRORS), open_bytes(source, deadline) as opened:
        digest, header = read_mp4_header(opened, source, config, deadline)
    if header is not None:
        return header
    info = None
    if kind_of(source) == "images":
        info = index_image(source, config, deadline)
    if info is not None:
        header = Header.of(info)
    else:
        with decode_errors(source, VIDEO_ERRORS):
            check_tables(source, deadline)
        header = _read_container(source, config, deadline)
        if header is None:
            header = Header.of(index_video(source, config, deadline))
    check_frame(source, header.width, header.height, config)
    return header._replace(digest=digest)


def read_mp4_header(
    opened: SourceBytes, source: Source, config: ClipConfig, deadline: Deadline
) -> tuple[int, Header | None]:
    """Read the header of an MP4 file, if it is one.

    Args:
        opened: Its bytes.
        source: The source, for errors.
        config: Its `max_pixels` is the limit of a frame.
        deadline: The time by which it must be read.

    Returns:
        `Header.digest`, and the header; None for another file, for one with fragments, and for one whose tables do not
        tell the number of frames.

    Raises:
        DecodeError: the file is empty, its tables claim too many frames, or these are refused.
        DataError: it is not read by the deadline.
    """
    file, begin, size = opened
    if size == 0:
        raise DecodeError(f"{source}: an empty file")
    file.seek(begin)
    first = file.read(min(size, _DIGEST_BYTES))
    file.seek(begin + max(0, size - _DIGEST_BYTES))
    last = file.read(min(size, _DIGEST_BYTES))
    content = f"{size}".encode() + first + last
    digest = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1
    header = None
    if first[4:8] in _MP4_KINDS:
        tracks = [_Track()]
        end = begin + size
        for box in iterate_boxes(file, begin, end, _TRACK_KINDS, deadline, _TRACK_CONTAINERS):
            if box.kind in _FRAGMENT_KINDS:  # the tables are those of the first fragment
                tracks = []
                break
            if box.kind == b"trak":
                tracks.append(_Track())
            tracks[-1].read(box.kind, box.content)
        header = next(filter(None, [track.header() for track in tracks]), None)
    if header is None:
        return digest, None
    if header.num_frames > size:
        raise DecodeError(f"{source}: its tables claim {header.num_frames} frames in {size} bytes")
    check_frame(source, header.width, header.height, config)
    return digest, header._replace(digest=digest)


class _Track:
    """A track of an MP4 file: its handler, times, size, and number of samples."""

    def __init__(self) -> None:
        self.is_video = False
        self.num_samples = 0
        self.ticks = 0
        self.ticks_per_second = 1
        self.width = 0
        self.height = 0

    def read(self, kind: bytes, content: bytes) -> None:
        """Read a box of the track."""
        has_long_times = content[:1] == b"\1"
        if kind == b"hdlr" and content[8:12] in (b"vide", b"soun", b"text"):
            self.is_video = content[8:12] == b"vide"
        elif kind == b"mdhd":
            timescale, self.ticks = struct.unpack_from(
                ">IQ" if has_long_times else ">II", content, 20 if has_long_times else 12
            )
            self.ticks_per_second = max(1, timescale)
        elif kind == b"stts" and content[4:8] == b"\0\0\0\1":
            # All frames have one duration. FFmpeg adds the delay of B-frames to that of the track.
            num_samples, duration = struct.unpack_from(">II", content, 8)
            self.ticks = num_samples * duration
        elif kind == b"tkhd":  # sizes are in units of 1/65536 pixel
            width, height = struct.unpack_from(">II", content, 88 if has_long_times else 76)
            self.width = width >> 16
            self.height = height >> 16
        elif kind in (b"stsz", b"stz2"):
            (self.num_samples,) = struct.unpack_from(">I", content, 8)

    def header(self) -> Header | None:
        """Return what the boxes say; None if they are not those of a video."""
        if not self.is_video or not 0 < self.num_samples <= MAX_FRAMES or self.ticks <= 0:
            return None
        fps = self.num_samples * self.ticks_per_second / self.ticks
        return Header(self.num_samples, fps, max(1, self.width), max(1, self.height))


def _read_container(source: Source, config: ClipConfig, deadline: Deadline) -> Header | None:
    """Return what FFmpeg finds in the header of a container; None if that is no number of frames."""
    with open_video(source, config.max_pixels, deadline) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        seconds = 0.0
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / 1e6
        states_duration = not _WITH_DURATION.isdisjoint(container.format.name.split(","))
        num_in_time = round(seconds * fps)
        num_frames = stream.frames or num_in_time
        if container.format.name.startswith("mov") and num_frames != num_in_time:
            return None  # of an MP4 with fragments, FFmpeg may count the first one
        width = stream.codec_context.width
        height = stream.codec_context.height
    if (
        not states_duration
        or not 0 < num_frames <= MAX_FRAMES
        or fps <= 0
        or width <= 0
        or height <= 0
    ):
        return None
    return Header(num_frames, fps, width, height)
