"""Arrays as clips: `.npy`, which is mapped into memory, and `.npz`, of any number of channels."""

from __future__ import annotations

import zipfile
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from telecine.data.errors import DataError, Deadline, DecodeError, decode_errors
from telecine.data.remote import open_local
from telecine.data.source import Source, TarMember, VideoInfo, check_frame, content_of
from telecine.settings import ClipConfig

_TYPES = ("uint8", "uint16", "float16", "float32", "float64")
_FPS = 25.0  # arrays have no times
_MAX_UNPACKED = 2**31  # bytes of the array of an `.npz`, which is unpacked whole
# What NumPy raises for other files, and for damaged, encrypted and invented ones.
_ERRORS = (OSError, ValueError, EOFError, RuntimeError, MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error)


def index_array(source: Source, config: ClipConfig, deadline: Deadline) -> VideoInfo:
    """Index an array by its header. Raises a `DecodeError` for one of other channels, axes or values than `config`."""
    values = _opened(source, deadline)
    layout, dtype = config.layout or ("T H W" if values.ndim == 3 else "T H W C"), values.dtype
    if values.ndim != len(layout.split()):
        raise DecodeError(f"{source}: shape {values.shape}, but not the axes {layout}; set `clips.layout`")
    if dtype.name not in _TYPES:
        raise DecodeError(f"{source}: values of {dtype}, which are not {', '.join(_TYPES)}")
    if dtype.kind == "f" and not config.range:
        raise DecodeError(f"{source}: values of {dtype}, for which `clips.range` says what is black and white")
    num_frames, height, width, found = _as_frames(values, layout).shape
    if found != config.num_channels:
        raise DecodeError(f"{source}: {found} channels, but `clips.channels` has {config.num_channels}")
    check_frame(source, width, height, config)
    stamps, fps = array("q", range(num_frames)), _FPS if "T" in layout else 1.0
    info = VideoInfo(source, width, height, fps, stamps, stamps, time_base=1 / fps, is_image="T" not in layout)
    return replace(info, layout=layout, range=config.range or (0.0, float(np.iinfo(dtype).max)))


def read_array(info: VideoInfo, frames: range, size: tuple[int, int]) -> Tensor:
    """Return frames of an array, float32 `(T, H, W, C)` in [-1, 1], resized with an antialiased bicubic filter.

    Raises a `DecodeError` if the file cannot be read any more, a `DataError` if a value is outside of the range.
    """
    low, high = info.range
    values = _as_frames(_opened(info.path), info.layout)[frames.start : frames.stop : frames.step]
    found = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
    found = found if found.dtype == torch.float64 else found.float()
    limits = np.array(info.range, values.dtype if values.dtype.kind == "f" else float)  # as the file can have them
    if not (limits[0] <= float(found.min()) and float(found.max()) <= limits[1]):
        text = f"values from {float(found.min()):g} to {float(found.max()):g} in frames {frames.start} to {frames[-1]}"
        raise DataError(f"{info.path}: {text}, outside of `clips.range`, [{low:g}, {high:g}]. Set a wider one.")
    video = found.sub_(low).div_((high - low) / 2).sub_(1).float().clamp_(-1, 1)
    if size == (info.height, info.width):
        return video
    resized = F.interpolate(video.movedim(-1, 1), size, mode="bicubic", antialias=True).clamp_(-1, 1)
    return resized.movedim(1, -1)


def write_array(path: Path, info: VideoInfo, chunks: Iterable[Tensor]) -> None:
    """Write video `(T, C, H, W)` in [-1, 1], in parts, as an `.npy` in the layout, the range and the type of `info`."""
    low, high = info.range
    dtype, start, output = _opened(info.path).dtype.newbyteorder("="), 0, None
    for chunk in chunks:
        values = (chunk.movedim(1, -1).double().cpu() + 1) * ((high - low) / 2) + low
        values = values if dtype.kind == "f" else values.round()
        if output is None:
            sizes = dict(zip("THWC", (info.num_frames, *values.shape[1:]), strict=True))
            shape = tuple(sizes[axis] for axis in info.layout.split())
            output = _as_frames(np.lib.format.open_memmap(path, "w+", dtype, shape), info.layout)
        output[start : start + len(values)] = values.numpy().astype(dtype)
        start += len(values)
    assert output is not None, "an array without frames is not indexed"


def _as_frames(values: Any, layout: str) -> Any:
    return rearrange(values, f"{layout} -> {' '.join(axis if axis in layout else '1' for axis in 'THWC')}")


def _opened(source: Source, deadline: Deadline | None = None) -> Any:
    with decode_errors(source, _ERRORS):
        values = open_local(source, _open, deadline)
        if 0 in values.shape:
            raise ValueError(f"an empty array, of shape {values.shape}")
        return values


def _open(source: Path | TarMember) -> Any:
    loaded = np.load(content_of(source), None if isinstance(source, TarMember) else "r", allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return loaded
    with loaded as archive:
        members = archive.zip.infolist()
        if len(members) != 1 or members[0].file_size > _MAX_UNPACKED:
            raise ValueError(f"it must have one array of at most {_MAX_UNPACKED} bytes; save it as .npy")
        return archive[archive.files[0]]
