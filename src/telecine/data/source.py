"""Where the bytes of a video or an image are, and the errors raised when data cannot be used."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TypeAlias

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".h264", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)

# Why such a file is not used.
ANIMATED = "an animated image, which is not read; convert it to a video, e.g. `ffmpeg -i IN.gif OUT.mp4`"


MAX_PATH_BYTES = 4096
# The beginnings of addresses that are read, see `telecine.data.remote`.
PROTOCOLS = ("s3", "gs", "hf", "https", "http")


class DataError(ValueError):
    """The data cannot be used: nothing was found, nothing can be decoded, or everything is too short."""

    def __str__(self) -> str:
        # A `DataLoader` worker sends its error as the text of a traceback. The message is at its end.
        text = super().__str__()
        return text.strip().rpartition(f"{type(self).__name__}: ")[2] if "Original Traceback" in text else text


class DecodeError(DataError):
    """One file, or one part of it, cannot be decoded."""


@dataclass(frozen=True)
class RemotePath:
    """A file or a folder at an address such as `s3://bucket/a.mp4`. Two with the same address are equal."""

    url: str
    """The address."""
    size: int | None = field(default=None, compare=False)
    """Size in bytes; None if it has not been asked for."""
    version: str = field(default="", compare=False)
    """What the server says of its content: an ETag or a modification time. Empty if it says nothing."""
    is_folder: bool = field(default=False, compare=False)
    """Whether it is a folder."""

    def __str__(self) -> str:
        return self.url

    @property
    def path(self) -> PurePosixPath:
        """The address without its protocol and its query."""
        _, _, rest = self.url.partition("://")
        return PurePosixPath(rest.partition("?")[0] if self.url.startswith("http") else rest)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return self.path.suffix

    def is_dir(self) -> bool:
        """Return whether it is a folder, as `Path.is_dir`."""
        return self.is_folder

    def is_file(self) -> bool:
        """Return whether it is a file, as `Path.is_file`."""
        return not self.is_folder


File: TypeAlias = Path | RemotePath


@dataclass(frozen=True)
class TarMember:
    """A file inside an uncompressed tar file. It is read in place, without unpacking the archive."""

    archive: File
    """The tar file."""
    name: str
    """Name of the member in the tar file."""
    offset: int
    """Offset of its first byte in the tar file."""
    size: int
    """Size in bytes."""

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


Source: TypeAlias = File | TarMember


def is_address(text: str) -> bool:
    """Return whether a text is an address of a protocol that is read, and not a local path."""
    protocol, separator, _ = text.partition("://")
    return bool(separator) and protocol in PROTOCOLS


def as_source(path: str | PathLike[str] | Source) -> Source:
    """Convert a path to a `Path`, an address to a `RemotePath`, and return other sources unchanged."""
    if isinstance(path, (RemotePath, TarMember)):
        return path
    return RemotePath(path) if isinstance(path, str) and is_address(path) else Path(path)


def file_of(source: Source) -> File:
    """Return the file that holds a source: the tar file of a member."""
    return source.archive if isinstance(source, TarMember) else source


def resolve_source(source: Source) -> Source:
    """Resolve links and `..`, so that all names of one file compare equal."""
    if isinstance(source, RemotePath):
        return source
    if isinstance(source, Path):
        return source.resolve()
    return source if isinstance(source.archive, RemotePath) else replace(source, archive=source.archive.resolve())


def ffmpeg_url(source: Source) -> str:
    """Return the URL by which FFmpeg opens a local source. Its `subfile` protocol reads part of a file in place.

    The protocol is always given, because FFmpeg takes the part of a name before a colon for a protocol.
    """
    if not isinstance(source, TarMember):
        return f"file:{source}"
    return f"subfile,,start,{source.offset},end,{source.offset + source.size},,:file:{source.archive}"


def read_bytes(source: Path | TarMember) -> bytes:
    """Read the whole content of a local source."""
    if isinstance(source, Path):
        return source.read_bytes()
    with open(str(source.archive), "rb") as file:
        file.seek(source.offset)
        return file.read(source.size)


def is_file_name(text: str) -> bool:
    """Return whether a file can have this path: not empty, short, and without NUL or half of a surrogate pair."""
    try:
        return "\0" not in text and 0 < len(os.fsencode(text)) < MAX_PATH_BYTES
    except UnicodeEncodeError:
        return False


def is_image(source: Source) -> bool:
    """Return whether a source has the suffix of an image."""
    return _suffix(source) in IMAGE_SUFFIXES


def is_media(source: Source) -> bool:
    """Return whether a source has the suffix of a video or an image."""
    return _suffix(source) in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def is_hidden(path: PurePosixPath | Path) -> bool:
    """Return whether the name of a file, or of a folder above it, begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def _suffix(source: Source) -> str:
    return PurePosixPath(source.name).suffix.lower()


def tar_members(archive: Path) -> Iterator[TarMember]:
    """Yield the videos and images of a tar file in the order of the archive, reading only the headers.

    Raises:
        OSError: the file cannot be read.
        tarfile.TarError: it is not a tar file, is compressed, or is truncated. Members before a truncated one are
            yielded first.
    """
    with tarfile.open(archive, "r:") as tar:
        for entry in tar:
            member = TarMember(archive, entry.name, entry.offset_data, entry.size)
            if entry.isreg() and is_media(member) and not is_hidden(PurePosixPath(entry.name)):
                yield member
