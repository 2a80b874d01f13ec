"""Files of the index of `clips.index: lazy`, of one video or of thousands, read without loading the rest."""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from telecine.base.files import partial_path
from telecine.data.hdr import BT2020, HLG, PQ
from telecine.data.source import VideoInfo

# Increase the number when the content of the file, or what `index_video` finds, changes. Older files are then ignored.
FORMAT = "2"
DAMAGE_ERRORS = (OSError, SafetensorError, ValueError, KeyError, IndexError, OverflowError)
_HDR = ("", PQ, HLG, BT2020)
_DIGEST_BYTES = 32  # of a SHA-256


def save_tensors(
    path: Path, columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write arrays as safetensors. Readers see the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    content = save(arrays, {"format": FORMAT, **metadata})
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)  # without a flush: a damaged file is replaced
    finally:
        partial.unlink(missing_ok=True)


def columns_of_infos(keys: Sequence[int], infos: Sequence[VideoInfo]) -> dict[str, NDArray[Any]]:
    """Return exact indices as columns, sorted by their keys.

    Args:
        keys: A number of 63 bits for each index, all different.
        infos: The indices of videos and images.
    """
    order = np.argsort(np.array(keys, np.int64))
    infos = [infos[place] for place in order]
    pts_ends = np.cumsum([len(info.pts) for info in infos], dtype=np.int64)
    keyframe_ends = np.cumsum([len(info.keyframes) for info in infos], dtype=np.int64)
    digests = [np.frombuffer(bytes.fromhex(info.digest), np.uint8) for info in infos]
    return {
        "exact.key": np.array(keys, np.int64)[order],
        "exact.pts": _joined([info.pts for info in infos]),
        "exact.pts_end": pts_ends,
        "exact.keyframes": _joined([info.keyframes for info in infos]),
        "exact.keyframes_end": keyframe_ends,
        "exact.width": np.array([info.width for info in infos], np.int64),
        "exact.height": np.array([info.height for info in infos], np.int64),
        "exact.fps": np.array([info.fps for info in infos], np.float64),
        "exact.time_base": np.array([info.time_base for info in infos], np.float64),
        "exact.aspect": np.array([info.sample_aspect_ratio for info in infos], np.float64),
        "exact.seekable": np.array([info.seekable for info in infos], np.bool_),
        "exact.is_image": np.array([info.is_image for info in infos], np.bool_),
        "exact.hdr": np.array([_HDR.index(info.hdr) for info in infos], np.uint8),
        "exact.digest": np.array(digests, np.uint8).reshape(len(infos), _DIGEST_BYTES),
    }


def _joined(numbers: Sequence[array[int]]) -> NDArray[np.int64]:
    views = [np.frombuffer(one, np.int64) for one in numbers]
    return np.concatenate([np.empty(0, np.int64), *views])


class IndexFile:
    """A file with exact indices. Only their keys are kept in memory.

    Raises:
        ValueError: It has another format.
        SafetensorError: It is damaged.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="numpy")
        self._file.__enter__()
        self.metadata: dict[str, str] = self._file.metadata() or {}
        if self.metadata.get("format") != FORMAT:
            raise ValueError(f"{path} has another format")
        self.names = set(self._file.keys())
        self.keys: NDArray[np.int64] = np.empty(0, np.int64)
        if "exact.key" in self.names:
            self.keys = self.column("exact.key")

    def column(self, name: str) -> NDArray[Any]:
        """Return a column."""
        column: NDArray[Any] = self._file.get_tensor(name)
        return column

    def info(self, key: int, source: Any) -> VideoInfo | None:
        """Return the index with a key as that of a source; None if it has none.

        Raises:
            ValueError: It is damaged.
        """
        row = int(np.searchsorted(self.keys, key))
        if row == len(self.keys) or self.keys[row] != key:
            return None
        values = {}
        for name in _FIELDS:
            values[name] = self._file.get_slice(f"exact.{name}")[row : row + 1][0]
        info = VideoInfo(
            source,
            width=int(values["width"]),
            height=int(values["height"]),
            fps=float(values["fps"]),
            pts=self._numbers("pts", row),
            keyframes=self._numbers("keyframes", row),
            seekable=bool(values["seekable"]),
            time_base=float(values["time_base"]),
            is_image=bool(values["is_image"]),
            sample_aspect_ratio=float(values["aspect"]),
            hdr=_HDR[int(values["hdr"])],
            digest=values["digest"].tobytes().hex(),
        )
        sizes = (
            info.num_frames,
            info.width,
            info.height,
            info.fps,
            info.time_base,
            info.sample_aspect_ratio,
        )
        if not min(sizes) > 0:  # also for NaN
            raise ValueError(f"the index of {source} has no frames")
        return info

    def _numbers(self, name: str, row: int) -> array[int]:
        ends = self._file.get_slice(f"exact.{name}_end")
        begin = int(ends[row - 1 : row][0]) if row > 0 else 0
        end = int(ends[row : row + 1][0])
        numbers = array("q")
        numbers.frombytes(self._file.get_slice(f"exact.{name}")[begin:end].tobytes())
        return numbers


_FIELDS = (
    "width",
    "height",
    "fps",
    "time_base",
    "aspect",
    "seekable",
    "is_image",
    "hdr",
    "digest",
)
