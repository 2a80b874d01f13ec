"""Where the bytes of a video or an image are: a file of its own, or a part of a tar file."""

from __future__ import annotations

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


@dataclass(frozen=True)
class TarMember:
    """One file inside an uncompressed tar file, which is read without unpacking the others."""

    archive: Path
    """The tar file."""
    name: str
    """The member's name in it."""
    offset: int
    """Where its first byte is in the tar file."""
    size: int
    """How many bytes it has."""

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


Source: TypeAlias = Path | TarMember


def as_source(path: str | PathLike[str] | TarMember) -> Source:
    """Return a path as a `Path`, and a member of a tar file as it is."""
    return path if isinstance(path, TarMember) else Path(path)


def as_one_name(source: Source) -> Source:
    """Return a source that is the same by all names of one file: links, and paths that go up and down again."""
    if isinstance(source, TarMember):
        return replace(source, archive=source.archive.resolve())
    return source.resolve()


def url_of(source: Source) -> str:
    """Return the name by which FFmpeg opens it; its `subfile` protocol reads a part of a file without copying it.

    Protocols are named, since FFmpeg takes what stands before a colon in a name for one.
    """
    if isinstance(source, Path):
        return f"file:{source}"
    return f"subfile,,start,{source.offset},end,{source.offset + source.size},,:file:{source.archive}"


def read_bytes(source: Source) -> bytes:
    """Return the whole content."""
    if isinstance(source, Path):
        return source.read_bytes()
    with source.archive.open("rb") as file:
        file.seek(source.offset)
        return file.read(source.size)


def is_image(source: Source) -> bool:
    """Say whether the suffix is that of a still image."""
    return _suffix(source) in IMAGE_SUFFIXES


def is_footage(source: Source) -> bool:
    """Say whether the suffix is that of a video or an image."""
    return _suffix(source) in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def is_hidden(path: PurePosixPath | Path) -> bool:
    """Say whether a file or a folder above it begins with a dot, as what systems leave behind does."""
    return any(part.startswith(".") for part in path.parts if part != ".")


def _suffix(source: Source) -> str:
    return PurePosixPath(source.name).suffix.lower()


def members_of(archive: Path) -> Iterator[TarMember]:
    """Yield the videos and images of a tar file, in its order.

    Only the headers are read.

    Raises:
        OSError: the file cannot be read.
        tarfile.TarError: it is no tar file, is compressed, or ends early, after what has been yielded.
    """
    with tarfile.open(archive, "r:") as tar:
        for entry in tar:
            member = TarMember(archive, entry.name, entry.offset_data, entry.size)
            if entry.isreg() and is_footage(member) and not is_hidden(PurePosixPath(entry.name)):
                yield member
