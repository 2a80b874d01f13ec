"""Exact indices of single files, or the reasons why there are none, as runs have saved them: a file for each key."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from telecine.data.lazy.index_file import DAMAGE_ERRORS, IndexFile, columns_of_infos, save_tensors
from telecine.data.source import Source, VideoInfo

logger = logging.getLogger(__name__)

_FAILURE = "failure"
_LIMITS = "limits"


class SavedInfos:
    """Exact indices by the keys of files, and the reasons why other files have none.

    Args:
        folders: Where they are. The first one is written to.
        limits: What decides whether a file can be indexed, besides its content. Failures by other limits do not count.
    """

    def __init__(self, folders: Sequence[Path], limits: str) -> None:
        self._folders = folders
        self._limits = limits
        self._failures: dict[int, str] = {}  # of this process
        self._is_writable = True

    def info(self, key: int, source: Source) -> VideoInfo | None:
        """Return the exact index of a source; None if it is not saved, or damaged.

        Args:
            key: The key of the source.
            source: The source.
        """
        for file in self._files_of(key):
            with suppress(*DAMAGE_ERRORS):
                info = file.info(key, source)
                if info is not None:
                    return info
        return None

    def failure(self, key: int) -> str | None:
        """Return why the source with a key has no exact index; None if that is not known."""
        if key in self._failures:
            return self._failures[key]
        for file in self._files_of(key):
            if file.metadata.get(_LIMITS) == self._limits:
                return file.metadata.get(_FAILURE)
        return None

    def save_info(self, key: int, info: VideoInfo) -> None:
        """Keep the exact index of the source with a key. An error of the system is logged once."""
        self._save(key, columns_of_infos([key], [info]), {})

    def save_failure(self, key: int, reason: str) -> None:
        """Keep why the source with a key has no exact index. An error of the system is logged once."""
        self._failures[key] = reason
        text = reason.encode("utf-8", "backslashreplace").decode()  # it may name a file
        self._save(key, {}, {_FAILURE: text, _LIMITS: self._limits})

    def _files_of(self, key: int) -> Iterator[IndexFile]:
        """Yield what runs have saved of a file."""
        for folder in self._folders:
            path = _path_of(folder, key)
            if path.is_file():
                with suppress(*DAMAGE_ERRORS):
                    yield IndexFile(path)

    def _save(
        self, key: int, columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
    ) -> None:
        if not self._is_writable:
            return
        try:
            save_tensors(_path_of(self._folders[0], key), columns, metadata)
        except OSError as error:
            self._is_writable = False
            logger.warning("indices cannot be saved, so that videos are indexed again: %s", error)


def _path_of(folder: Path, key: int) -> Path:
    name = f"{key:016x}"
    return folder / name[-2:] / name
