"""Still images: clips of one frame."""

from __future__ import annotations

import io
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from telecine.data.errors import DecodeError
from telecine.data.info import VideoInfo
from telecine.data.source import Source, read_bytes

# What Pillow raises for files that are broken, cut off, of another kind, or larger than it deems safe.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_EXIF_ORIENTATION = 0x0112
# Those that swap height and width. What is no orientation, of another type even, turns nothing.
_TURNED = (5, 6, 7, 8)


def index_image(source: Source) -> VideoInfo:
    """Index an image by its header; whether the rest is whole shows when it is read, except of PNG, which is decoded.

    Raises:
        DecodeError: it cannot be opened, or is no image.
    """
    with _opened(source) as image:
        turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
        width, height = image.size[::-1] if turned else image.size
    return VideoInfo(source, width, height, 1.0, array("q", [0]), array("q", [0]), is_image=True)


def read_image(source: Source, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image upright as uint8 RGB `(H, W, 3)`; of an animation, its first frame.

    Transparent parts are laid on white, 16 bits are brought to 8, palettes and CMYK are converted.

    Args:
        source: the image.
        size: `(height, width)` to resize to, with an antialiased bicubic filter; as stored without it.

    Raises:
        DecodeError: the image is broken.
    """
    with _opened(source) as image:
        upright = _rgb(ImageOps.exif_transpose(image))
        if size is not None and upright.size != size[::-1]:
            upright = upright.resize(size[::-1], Image.Resampling.BICUBIC)
        width, height = upright.size
        return torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8).reshape(height, width, 3)


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    try:
        # Of a file of its own, Pillow reads no more than it needs.
        with Image.open(source if isinstance(source, Path) else io.BytesIO(read_bytes(source))) as image:
            yield image
    except _BROKEN as error:
        raise DecodeError(f"{source}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "is no image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _rgb(image: Any) -> Any:
    if image.mode.startswith("I"):
        # 16-bit grey, which `convert` would clip at 255.
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
