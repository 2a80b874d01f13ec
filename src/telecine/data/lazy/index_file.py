"""Files of columns: exact indices of one video or of thousands, which are read without loading the rest."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import weakref
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from telecine.base.files import open_regular, partial_path, remove_partial
from telecine.data.hdr import BT2020, HLG, PQ
from telecine.data.lazy.sorted_numbers import find_row
from telecine.data.source import VideoInfo

# Increase the number when the content of the file, or what `index_video` finds, changes. Older files are then ignored.
FORMAT = "3"
DAMAGE_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    RecursionError,
    struct.error,
)
_LENGTH = struct.Struct("<Q")  # of the description at the beginning of a file of safetensors
_MAX_DESCRIPTION = 2**27  # bytes; that of a tar file lists members that cannot be read
_DTYPES: dict[str, Any] = {"BOOL": "?", "U8": "u1", "I32": "<i4", "I64": "<i8", "F64": "<f8"}
_HDR = ("", PQ, HLG, BT2020)
_SECONDS_OF_A_WRITE = 3600.0  # what is older, a process that was killed has left
_DIGEST_BYTES = 32  # of a SHA-256
# Columns with a value for each exact index.
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
    "pts_end",
    "keyframes_end",
)


def save_tensors(
    path: Path, columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write arrays as safetensors. Readers see the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dense = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    content = save(
        dense, {"format": FORMAT, **metadata}
    )  # `save_file` hides the file from other users
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)  # without a flush: a damaged file is replaced
    finally:
        partial.unlink(missing_ok=True)


def remove_left(folder: Path) -> None:
    """Remove from a folder what processes that were killed have left."""
    with suppress(OSError):  # another process removes it, too
        remove_partial(folder, time.time() - _SECONDS_OF_A_WRITE)


def columns_of_records(records: NDArray[Any], prefix: str = "") -> dict[str, NDArray[Any]]:
    """Return the fields of records as columns, see `IndexFile.records`.

    Args:
        records: Rows of a structured type, such as `HEADER`.
        prefix: What the names of the columns begin with.
    """
    return {f"{prefix}{name}": records[name] for name in records.dtype.names or ()}


def columns_of_infos(keys: Sequence[int], infos: Sequence[VideoInfo]) -> dict[str, NDArray[Any]]:
    """Return exact indices as columns, sorted by their keys.

    Args:
        keys: A number of 63 bits for each index, all different, see `IndexFile`.
        infos: The indices of videos and images.
    """
    order = np.argsort(np.array(keys, np.int64))
    infos = [infos[row] for row in order]
    pts = array("q")
    keyframes = array("q")
    for info in infos:
        pts.extend(info.pts)
        keyframes.extend(info.keyframes)
    pts_ends = np.cumsum([len(info.pts) for info in infos], dtype=np.int64)
    keyframe_ends = np.cumsum([len(info.keyframes) for info in infos], dtype=np.int64)
    digests = bytes.fromhex("".join(info.digest for info in infos))
    return {
        "exact.key": np.array(keys, np.int64)[order],
        "exact.pts": np.array(pts, np.int64),
        "exact.pts_end": pts_ends,
        "exact.keyframes": np.array(keyframes, np.int64),
        "exact.keyframes_end": keyframe_ends,
        "exact.width": np.array([info.width for info in infos], np.int64),
        "exact.height": np.array([info.height for info in infos], np.int64),
        "exact.fps": np.array([info.fps for info in infos], np.float64),
        "exact.time_base": np.array([info.time_base for info in infos], np.float64),
        "exact.aspect": np.array([info.sample_aspect_ratio for info in infos], np.float64),
        "exact.seekable": np.array([info.seekable for info in infos], np.bool_),
        "exact.is_image": np.array([info.is_image for info in infos], np.bool_),
        "exact.hdr": np.array([_HDR.index(info.hdr) for info in infos], np.uint8),
        "exact.digest": np.frombuffer(digests, np.uint8).reshape(len(infos), _DIGEST_BYTES),
    }


def infos_of_columns(columns: Mapping[str, NDArray[Any]], source: Any) -> list[VideoInfo]:
    """Return the exact indices that `columns_of_infos` has made columns of, in the order of their keys.

    Args:
        columns: The columns; `exact.key` is not needed.
        source: The source of all indices.

    Raises:
        ValueError: they are damaged. So are the other errors of `DAMAGE_ERRORS`.
    """
    all_pts = _as_array(columns["exact.pts"])
    all_keyframes = _as_array(columns["exact.keyframes"])
    values = [columns[f"exact.{name}"].tolist() for name in _FIELDS]
    infos = []
    pts_begin = 0
    keyframes_begin = 0
    for values_of_row in zip(*values, strict=True):
        row = dict(zip(_FIELDS, values_of_row, strict=True))
        info = VideoInfo(
            source,
            width=row["width"],
            height=row["height"],
            fps=row["fps"],
            pts=all_pts[pts_begin : row["pts_end"]],
            keyframes=all_keyframes[keyframes_begin : row["keyframes_end"]],
            seekable=row["seekable"],
            time_base=row["time_base"],
            is_image=row["is_image"],
            sample_aspect_ratio=row["aspect"],
            hdr=_HDR[row["hdr"]],
            digest=bytes(row["digest"]).hex(),
        )
        sizes = (
            info.num_frames,
            info.width,
            info.height,
            info.fps,
            info.time_base,
            info.sample_aspect_ratio,
        )
        if not all(size > 0 for size in sizes):  # also for NaN
            raise ValueError("an index has no frames")
        infos.append(info)
        pts_begin = row["pts_end"]
        keyframes_begin = row["keyframes_end"]
    return infos


def _as_array(numbers: NDArray[np.int64]) -> array[int]:
    copy = array("q")
    copy.frombytes(numbers.astype(np.int64, copy=False).tobytes())
    return copy


class Column(NamedTuple):
    """Where the values of a column are in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int  # of its first byte in the file


class Description(NamedTuple):
    """What stands at the beginning of a file of safetensors."""

    metadata: dict[str, str]
    columns: dict[str, Column]


def read_description(file: BinaryIO) -> Description:
    """Read the beginning of a file of safetensors. The library would map the whole file.

    Raises:
        ValueError: It is damaged. So are the other errors of `DAMAGE_ERRORS`.
    """
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > _MAX_DESCRIPTION:
        raise ValueError("it does not begin with a description of columns")
    described = json.loads(file.read(length))
    size = file.seek(0, os.SEEK_END)
    if not isinstance(described, dict):
        raise ValueError("the description is no object")
    metadata = described.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("the metadata is no object")
    columns = {}
    for name, one in described.items():
        dtype = np.dtype(_DTYPES[one["dtype"]])
        shape = tuple(one["shape"])
        begin, end = (_LENGTH.size + length + offset for offset in one["data_offsets"])
        if end - begin != dtype.itemsize * int(np.prod(shape)) or not 0 < begin <= end <= size:
            raise ValueError(f"column {name} is damaged")
        columns[name] = Column(dtype, shape, begin)
    return Description(metadata, columns)


class IndexFile:
    """A file with exact indices. Only their keys are kept in memory: a mapped file would count as memory, too.

    A key is that of a file, see `telecine.data.index_keys.key_of`; in the sidecar of a tar file, it is the offset of a
    member. Columns of headers have keys of their own.

    It is open until this object is freed.

    Raises:
        ValueError: It has another format, or is damaged. So are the other errors of `DAMAGE_ERRORS`.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path)  # closed with this object
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self.metadata, self._columns = read_description(self._file)
        if self.metadata.get("format") != FORMAT:
            raise ValueError(f"{path} has another format")
        self.exact_keys: NDArray[np.int64] = np.empty(0, np.int64)
        if "exact.key" in self._columns:
            self.exact_keys = self.column("exact.key")

    def column(self, name: str) -> NDArray[Any]:
        """Return a column."""
        return self._rows(name, 0, self._columns[name].shape[0])

    def records(self, dtype: np.dtype[Any], count: int, prefix: str = "") -> NDArray[Any]:
        """Return columns as records.

        Args:
            dtype: The type of the records, whose fields the columns are.
            count: The number of records.
            prefix: What the names of the columns begin with.

        Raises:
            ValueError: A column has another length.
        """
        records = np.zeros(count, dtype)
        for name in dtype.names or ():
            records[name] = self.column(f"{prefix}{name}")
        return records

    def _rows(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return the values of a column in some rows.

        Raises:
            ValueError: The file is shorter.
        """
        column = self._columns[name]
        row_shape = column.shape[1:]
        row_bytes = column.dtype.itemsize * int(np.prod(row_shape))
        begin = min(begin, column.shape[0])
        end = min(end, column.shape[0])
        content = self._read(column.begin + begin * row_bytes, (end - begin) * row_bytes)
        return np.frombuffer(content, column.dtype).reshape(-1, *row_shape)

    def _read(self, begin: int, count: int) -> bytes:
        if hasattr(os, "pread"):  # processes that were forked share the position in the file
            return os.pread(self._file.fileno(), count, begin)
        with self._lock:
            self._file.seek(begin)
            return self._file.read(count)

    def infos(self, source: Any) -> dict[int, VideoInfo]:
        """Return all exact indices by their keys.

        Args:
            source: The source of all indices.

        Raises:
            ValueError: They are damaged. So are the other errors of `DAMAGE_ERRORS`.
        """
        if len(self.exact_keys) == 0:
            return {}
        columns = {}
        for name in (*_FIELDS, "pts", "keyframes"):
            columns[f"exact.{name}"] = self.column(f"exact.{name}")
        return dict(zip(self.exact_keys.tolist(), infos_of_columns(columns, source), strict=True))

    def info(self, key: int, source: Any) -> VideoInfo | None:
        """Return the exact index with a key as that of a source; None if there is none.

        Raises:
            ValueError: It is damaged.
        """
        row = find_row(self.exact_keys, key)
        if row is None:
            return None
        columns = {}
        for name in _FIELDS:
            columns[f"exact.{name}"] = self._rows(f"exact.{name}", row, row + 1)
        for name in ("pts", "keyframes"):
            end_column = f"exact.{name}_end"
            end = int(columns[end_column][0])
            begin = int(self._rows(end_column, row - 1, row)[0]) if row > 0 else 0
            columns[f"exact.{name}"] = self._rows(f"exact.{name}", begin, end)
            columns[end_column] = np.array([end - begin])
        (info,) = infos_of_columns(columns, source)
        return info
