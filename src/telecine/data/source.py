"""Where the bytes of a video or an image are, and the errors raised when data cannot be used."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


class DataError(ValueError):
    """The data cannot be used: nothing was found, nothing can be decoded, or everything is too short."""

    def __str__(self) -> str:
        # A `DataLoader` worker sends its error as the text of a traceback. The message is at its end.
        text = super().__str__()
        return text.strip().rpartition(f"{type(self).__name__}: ")[2] if "Original Traceback" in text else text


class DecodeError(DataError):
    """One file, or one part of it, cannot be decoded."""


@dataclass(frozen=True)
class TarMember:
    """A file inside an uncompressed tar file. It is read in place, without unpacking the archive."""

    archive: Path
    """The tar file."""
    name: str
    """Name of the member in the tar file."""
    offset: int
    """Offset of its first byte in the tar file."""
    size: int
    """Size in bytes."""

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


Source: TypeAlias = Path | TarMember


def as_source(path: str | PathLike[str] | TarMember) -> Source:
    """Convert a path to a `Path`, and return a tar member unchanged."""
    return path if isinstance(path, TarMember) else Path(path)


def resolve_source(source: Source) -> Source:
    """Resolve links and `..`, so that all names of one file compare equal."""
    if isinstance(source, TarMember):
        return replace(source, archive=source.archive.resolve())
    return source.resolve()


def ffmpeg_url(source: Source) -> str:
    """Return the URL by which FFmpeg opens a source. Its `subfile` protocol reads part of a file in place.

    The protocol is always given, because FFmpeg takes the part of a name before a colon for a protocol.
    """
    if isinstance(source, Path):
        return f"file:{source}"
    return f"subfile,,start,{source.offset},end,{source.offset + source.size},,:file:{source.archive}"


def read_bytes(source: Source) -> bytes:
    """Read the whole content of a source."""
    if isinstance(source, Path):
        return source.read_bytes()
    with source.archive.open("rb") as file:
        file.seek(source.offset)
        return file.read(source.size)


def is_file_name(text: str) -> bool:
    """Return whether a file can have this path: it is short, and has neither NUL nor half of a surrogate pair."""
    try:
        return "\0" not in text and len(os.fsencode(text)) < MAX_PATH_BYTES
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
