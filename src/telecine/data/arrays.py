"""Arrays as clips: `.npy`, which is mapped into memory, and `.npz`, of any number of channels."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from telecine.data.errors import DataError, Deadline, DecodeError, decode_errors
from telecine.data.remote_read import open_local
from telecine.data.source import (
    Source,
    TarMember,
    VideoInfo,
    check_frame,
    open_file,
    path_or_content,
)
from telecine.settings import ClipConfig

_TYPES = ("uint8", "uint16", "float16", "float32", "float64")
_FPS = 25.0  # arrays have no times
_MAX_UNPACKED = 2**31  # bytes of the array of an `.npz`, which is unpacked whole
# Errors of NumPy for files that are no arrays, damaged or encrypted.
_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def index_array(source: Source, config: ClipConfig, deadline: Deadline) -> VideoInfo:
    """Index an array by its header.

    Args:
        source: An `.npy` or `.npz` file.
        config: Its `layout` and `range` describe the array, which must have its `channels`.
        deadline: The time by which a file at an address must arrive.

    Raises:
        DecodeError: the file cannot be read, or has other axes, values or channels, or larger frames than `config`.
    """
    values = _open(source, deadline, header_only=True)
    dtype = values.dtype
    layout = config.layout
    if layout is None:
        layout = "T H W" if values.ndim == 3 else "T H W C"
    if values.ndim != len(layout.split()):
        raise DecodeError(
            f"{source}: shape {values.shape}, but not the axes {layout}; set `clips.layout`"
        )
    if dtype.name not in _TYPES:
        raise DecodeError(f"{source}: values of {dtype}, which are not {', '.join(_TYPES)}")
    if dtype.kind == "f" and not config.range:
        raise DecodeError(
            f"{source}: values of {dtype}, for which `clips.range` must say what is black and white"
        )
    num_frames, height, width, num_channels = _as_frames(values, layout).shape
    if num_channels != config.num_channels:
        raise DecodeError(
            f"{source}: {num_channels} channels, but `clips.channels` has {config.num_channels}"
        )
    check_frame(source, width, height, config)
    is_image = "T" not in layout
    fps = 1.0 if is_image else _FPS
    numbers = array("q", range(num_frames))
    return VideoInfo(
        source,
        width,
        height,
        fps,
        pts=numbers,
        keyframes=numbers,
        time_base=1 / fps,
        is_image=is_image,
        layout=layout,
        range=config.range or (0.0, float(np.iinfo(dtype).max)),
    )


def read_array(info: VideoInfo, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Read frames of an array, resized with an antialiased bicubic filter.

    Args:
        info: The index of the array.
        indices: Indices of the frames, in order.
        size: Height and width of the result.

    Returns:
        float32 `(T, H, W, C)` in [-1, 1].

    Raises:
        DecodeError: the file cannot be read any more.
        DataError: a value is outside of the range of `info`.
    """
    low, high = info.range
    stored = _as_frames(_open(info.source), info.layout)[list(indices)]
    values = torch.from_numpy(stored.astype(stored.dtype.newbyteorder("=")))
    if values.dtype != torch.float64:
        values = values.float()
    smallest = float(values.min())
    largest = float(values.max())
    # The limits as the type of the file rounds them: a float32 cannot be 0.1.
    low_stored, high_stored = np.array(
        info.range, stored.dtype if stored.dtype.kind == "f" else float
    )
    if not (low_stored <= smallest and largest <= high_stored):
        text = f"values from {smallest:g} to {largest:g} in frames {indices[0]} to {indices[-1]}"
        raise DataError(
            f"{info.source}: {text}, outside of `clips.range`, [{low:g}, {high:g}]. Set a wider one."
        )
    video = values.sub_(low).div_((high - low) / 2).sub_(1).float().clamp_(-1, 1)
    if size == (info.height, info.width):
        return video
    channels_first = video.movedim(-1, 1)
    resized = F.interpolate(channels_first, size, mode="bicubic", antialias=True).clamp_(-1, 1)
    return resized.movedim(1, -1)


def write_array(path: Path, info: VideoInfo, chunks: Iterable[Tensor]) -> None:
    """Write video as an `.npy` with the layout, the range and the type of another array.

    Args:
        path: The file to write.
        info: The index of the other array, with as many frames as `chunks` have together.
        chunks: Video `(T, C, H, W)` in [-1, 1].
    """
    low, high = info.range
    dtype = _open(info.source).dtype.newbyteorder("=")
    output: Any = None
    start = 0
    for chunk in chunks:
        values = (chunk.movedim(1, -1).double().cpu() + 1) * ((high - low) / 2) + low
        if dtype.kind != "f":
            values = values.round()
        if output is None:
            height, width, num_channels = values.shape[1:]
            sizes = {"T": info.num_frames, "H": height, "W": width, "C": num_channels}
            shape = tuple(sizes[axis] for axis in info.layout.split())
            output = _as_frames(np.lib.format.open_memmap(path, "w+", dtype, shape), info.layout)
        output[start : start + len(values)] = values.numpy().astype(dtype)
        start += len(values)
    assert output is not None, "an array without frames is not indexed"


def _as_frames(values: Any, layout: str) -> Any:
    """Return a view of an array with the axes `T H W C`; missing ones have the length 1."""
    axes = [axis if axis in layout else "1" for axis in "THWC"]
    return rearrange(values, f"{layout} -> {' '.join(axes)}")


def _open(source: Source, deadline: Deadline | None = None, *, header_only: bool = False) -> Any:
    with decode_errors(source, _ERRORS):
        load = _load_header if header_only else _load
        values = open_local(source, load, deadline, reads="whole")  # to map it
        if 0 in values.shape:
            raise ValueError(f"an empty array, of shape {values.shape}")
        return values


def _load_header(source: Path | TarMember) -> Any:
    """Return an array of the shape and type of a file's, without memory: an `.npz` is not unpacked."""
    if not source.name.lower().endswith(".npz"):
        return _load(source)
    with zipfile.ZipFile(path_or_content(source)) as archive:
        (name,) = _names_in(archive)
        with archive.open(name) as member:
            shape, _, dtype = _read_npy_header(member)
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > _MAX_UNPACKED:
        raise ValueError(f"its header claims an array of {num_bytes} bytes")
    return np.broadcast_to(np.empty((), dtype), shape)


def _read_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape of an array, whether its first axis is contiguous, and its type. The values follow."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    return read(file)


def _names_in(archive: zipfile.ZipFile) -> list[str]:
    members = archive.infolist()
    if len(members) != 1 or members[0].file_size > _MAX_UNPACKED:
        raise ValueError(
            f"it must have one array of at most {_MAX_UNPACKED} bytes; save it as .npy"
        )
    return [members[0].filename]


def _map_member(member: TarMember) -> Any:
    """Return an array in a tar file, mapped into memory; None if it is no `.npy` by its content."""
    with open_file(member) as file:
        file.seek(member.offset)
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            return None
        file.seek(member.offset)
        shape, is_fortran, dtype = _read_npy_header(file)
        begin = file.tell()
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    if 0 in shape:
        return np.empty(shape, dtype)
    if begin + math.prod(shape) * dtype.itemsize > member.offset + member.size:
        raise ValueError(f"truncated: its header claims an array of shape {shape}")
    path = str(member.archive)
    return np.memmap(path, dtype, "r", begin, shape, order="F" if is_fortran else "C")


def _load(source: Path | TarMember) -> Any:
    if isinstance(source, TarMember):
        mapped = _map_member(source)
        if mapped is not None:
            return mapped
    content = path_or_content(source)
    loaded = np.load(
        content, mmap_mode="r" if isinstance(content, Path) else None, allow_pickle=False
    )
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return loaded
    with loaded as archive:
        _names_in(archive.zip)
        return archive[archive.files[0]]
