"""Sources of videos, images and arrays, their index, and spans of their frames."""

from __future__ import annotations

import io
import math
import os
import posixpath
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

from telecine.base.checks import first_few
from telecine.base.files import open_regular
from telecine.data.errors import DecodeError
from telecine.settings import ClipConfig

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {
        ".3gp",
        ".apng",
        ".avi",
        ".flv",
        ".h264",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    }
)
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES | ARRAY_SUFFIXES
# Protocols of addresses, see `telecine.data.remote`.
PROTOCOLS = ("s3", "gs", "hf", "https", "http")

_MAX_PATH_BYTES = 4096
_TIME_TOLERANCE = 5e-4  # seconds
TIE_SECONDS = 1e-6  # two frames are equally near to a time if their distances differ by less
# A clip covers its crop: an image of 1 x 100 000 would be enlarged to 256 x 25 600 000.
_MAX_ASPECT_RATIO = 100


@dataclass(frozen=True)
class RemotePath:
    """A file or a folder at an address such as `s3://bucket/a.mp4`. Equal addresses are equal."""

    url: str
    size: int | None = field(default=None, compare=False)
    """Size in bytes; None until the server is asked."""
    version: str = field(default="", compare=False)
    """ETag or modification time; empty if the server sends none."""
    is_folder: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def path(self) -> PurePosixPath:
        """The address without its protocol and its query."""
        _, _, rest = self.url.partition("://")
        if self.url.startswith("http"):
            rest = rest.partition("?")[0]
        return PurePosixPath(rest)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return self.path.suffix

    def is_dir(self) -> bool:
        """Return `is_folder`, as `Path.is_dir`."""
        return self.is_folder


File: TypeAlias = Path | RemotePath


@dataclass(frozen=True)
class TarMember:
    """A file inside an uncompressed tar file. It is read in place, without unpacking the archive."""

    archive: File
    name: str
    offset: int  # of its first byte in the tar file
    size: int  # in bytes

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


Source: TypeAlias = File | TarMember
# A source on this machine: a file, a member of a tar file, or a binary file that is open.
LocalSource: TypeAlias = Path | TarMember | BinaryIO
AnyPath: TypeAlias = str | PathLike[str] | Source  # of a user: a path, an address, or a source


def is_address(text: str) -> bool:
    """Return whether a text is an address of one of `PROTOCOLS`, and not a local path."""
    protocol, separator, _ = text.partition("://")
    return separator != "" and protocol in PROTOCOLS


def as_source(path: AnyPath) -> Source:
    """Convert a path to a `Path`, an address to a `RemotePath`, and return other sources unchanged."""
    if isinstance(path, (RemotePath, TarMember)):
        return path
    if isinstance(path, str) and is_address(path):
        return RemotePath(path)
    return Path(path)


def file_of(source: Source) -> File:
    """Return the file that holds a source: the tar file of a member, otherwise the source."""
    return source.archive if isinstance(source, TarMember) else source


def resolve_source(source: Source) -> Source:
    """Resolve links and `..`, so that all names of one file compare equal."""
    if isinstance(source, Path):
        return source.resolve()
    if isinstance(source, TarMember) and isinstance(source.archive, Path):
        return replace(source, archive=source.archive.resolve())
    return source


def is_file_name(text: str) -> bool:
    """Return whether a file can have this path: not empty, short, and without NUL or half of a surrogate pair."""
    try:
        num_bytes = len(os.fsencode(text))
    except UnicodeEncodeError:
        return False
    return "\0" not in text and 0 < num_bytes < _MAX_PATH_BYTES


def kind_of(source: Source) -> str:
    """Return what a source is by its suffix: "images", "videos" or "arrays"; "" for another file."""
    suffix = posixpath.splitext(source.name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return "images"
    if suffix in VIDEO_SUFFIXES:
        return "videos"
    if suffix in ARRAY_SUFFIXES:
        return "arrays"
    return ""


@dataclass(frozen=True)
class Skipped:
    """A file or a part of one that is not used, and the reason."""

    path: Source
    reason: str

    @staticmethod
    def remedy(skipped: Iterable[Skipped]) -> str:
        """Return what to do about files of which none can be decoded, as sentences."""
        remedy = "Check that they are complete and that other programs show them."
        if all(kind_of(file.path) == "" for file in skipped):
            remedy += " A list is .csv, .jsonl or .parquet with a column `path`."
        return remedy

    @staticmethod
    def of(path: Source, error: DecodeError) -> Skipped:
        """Return the file with the reason of an error, whose message is `PATH: REASON`."""
        return Skipped(path, str(error).removeprefix(f"{path}: "))

    @staticmethod
    def listed(skipped: Sequence[Skipped]) -> str:
        """List the first few skipped files with their reasons, and the number of the others."""
        return first_few([f"{skip.path} ({skip.reason})" for skip in skipped])


def is_hidden(path: str) -> bool:
    """Return whether the name of a file, or of a folder above it, begins with a dot.

    Args:
        path: A relative path with `/` between names.
    """
    return any(name.startswith(".") and name != "." for name in path.split("/"))


def open_file(source: LocalSource) -> BinaryIO:
    """Open the file that holds a source. A file that is open already is returned.

    Raises:
        DecodeError: it is no regular file but a FIFO, a device or the like.
        OSError: it cannot be opened.
    """
    if not isinstance(source, (Path, TarMember)):
        return source
    try:
        return open_regular(Path(str(file_of(source))))
    except ValueError as error:
        raise DecodeError(str(error)) from error


def extent(source: LocalSource, file: BinaryIO) -> tuple[int, int]:
    """Return where a source begins in the opened file that holds it, and its size in bytes."""
    if isinstance(source, TarMember):
        return source.offset, source.size
    return 0, file.seek(0, os.SEEK_END)


def path_or_content(source: LocalSource) -> Path | BinaryIO:
    """Return the path of a regular file, of which a library reads only what it needs, or the content of a member."""
    if not isinstance(source, (Path, TarMember)):
        return source
    with open_file(source) as file:
        if not isinstance(source, TarMember):
            return source
        file.seek(source.offset)
        return io.BytesIO(file.read(source.size))


@dataclass(frozen=True)
class VideoInfo:
    """The index of a source: the timestamps and keyframes of its frames, see `telecine.data.index_video`.

    An image has one frame, and so has an array without a time axis: `is_image` is true, and `pts` and `keyframes`
    are [0]. The frames of other arrays are numbered in `pts`, at `fps` frames a second, and all are keyframes. Only
    arrays have a `layout` and a `range`, and only videos `hdr` and an aspect ratio other than 1.
    """

    source: Source
    width: int  # in square pixels, as displayed
    height: int
    fps: float  # average number of frames per second; 1 for an image
    pts: array[int] = field(repr=False, hash=False)
    """Timestamp of each frame in display order, in units of `time_base`. The frame's index if `seekable` is false.
    In some files they are in decoding order. They then do not increase, and only tell frames apart."""
    keyframes: array[int] = field(repr=False, hash=False)  # indices in display order
    seekable: bool = True  # whether frames have timestamps to seek to; otherwise files are decoded from their start
    time_base: float = 1.0  # unit of `pts` in seconds
    is_image: bool = False
    sample_aspect_ratio: float = 1.0
    """Width of a stored pixel divided by its height, after rotation."""
    layout: str = ""  # axes of an array, as `clips.layout`; empty for others
    range: tuple[float, ...] = ()  # values of an array that are black and white
    hdr: str = ""  # "PQ", "HLG" or "BT.2020", see `telecine.data.hdr`; empty for ordinary video
    digest: str = field(default="", repr=False, compare=False)
    """SHA-256 of the size of the file and of its bytes, of a large file of blocks, see `telecine.data.index`."""

    @property
    def num_frames(self) -> int:
        """Number of displayed frames."""
        return len(self.pts)

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width in stored pixels, after rotation."""
        aspect = self.sample_aspect_ratio
        return round(self.height * min(aspect, 1)), round(self.width * min(1 / aspect, 1))

    @property
    def is_array(self) -> bool:
        """Whether it is an `.npy` or `.npz` file."""
        return self.layout != ""

    def frame_at(self, seconds: float) -> int:
        """Return the index of the first frame displayed at or after `seconds`, counted from the first frame."""
        # Lists may round times to the unit of timestamps, or to milliseconds if these are shorter.
        tolerance = min(0.5, _TIME_TOLERANCE / self.time_base)
        timestamp = self._sorted_pts[0] + math.ceil(seconds / self.time_base - tolerance)
        return bisect_left(self._sorted_pts, timestamp)

    def nearest_frame(self, start: int, seconds: float) -> int:
        """Return the index of the frame whose timestamp is nearest to `seconds` after that of frame `start`.

        Of two that are equally near, it is the earlier one. If the video has ended by then, it is `num_frames`. If its
        timestamps do not increase, the frames count as evenly spaced.
        """
        last = self.num_frames - 1
        if not self._is_sorted:
            index = math.ceil(start + seconds * self.fps - 0.5 - TIE_SECONDS * self.fps)
            return min(index, self.num_frames)
        time = self.pts[start] + seconds / self.time_base
        tie = TIE_SECONDS / self.time_base
        # The last frame is displayed until then, and longer.
        end = self.pts[last] + 0.5 / self.fps / self.time_base
        if time > end + tie:
            return self.num_frames
        after = bisect_left(self.pts, time, lo=start)
        if after > last:
            return last
        if after == start:
            return start
        is_before_nearer = time - self.pts[after - 1] <= self.pts[after] - time + tie
        return after - 1 if is_before_nearer else after

    @cached_property
    def _is_sorted(self) -> bool:
        return all(earlier < later for earlier, later in pairwise(self.pts))

    @cached_property
    def _sorted_pts(self) -> array[int]:
        return array("q", sorted(self.pts))  # once, because many segments of a video use them


@dataclass(frozen=True)
class Span:
    """Consecutive frames of an indexed video."""

    info: VideoInfo
    first_frame: int
    last_frame: int  # inclusive
    group: str = ""  # spans of one group are held out together; empty if the data names none
    columns: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    """Columns of a list that are kept, such as a caption."""

    @property
    def source(self) -> Source:
        """The video."""
        return self.info.source

    @property
    def num_frames(self) -> int:
        """Number of frames; 0 or less if the range is empty."""
        return self.last_frame - self.first_frame + 1


def whole_video(info: VideoInfo) -> Span:
    """Return the span of all frames of a video."""
    return Span(info, 0, info.num_frames - 1)


def check_frame(source: Source, width: int, height: int, config: ClipConfig) -> None:
    """Check that frames have channels that `config` can have, and a size that fits in memory.

    Args:
        source: The file, for the error.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        config: Its `max_pixels` is the limit of width times height. Its `channels` may be those of arrays only.

    Raises:
        DecodeError: a frame is too large, a side is more than 100 times the other, or only arrays have such channels.
    """
    if not config.has_colours and kind_of(source) != "arrays":
        raise DecodeError(
            f"{source}: not an array; only arrays can have {config.num_channels} channels"
        )
    size = f"{width} x {height} pixels"
    if width * height > config.max_pixels:
        raise DecodeError(
            f"{source}: {size}, more than the {config.max_pixels} of `clips.max_pixels`"
        )
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        raise DecodeError(
            f"{source}: {size}, but one side may be at most {_MAX_ASPECT_RATIO} times the other"
        )
