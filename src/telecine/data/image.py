"""Decoding still images, which are clips of one frame."""

from __future__ import annotations

import io
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from telecine.data.remote import open_local
from telecine.data.source import ANIMATED, DecodeError, Source, TarMember, read_bytes
from telecine.data.video_info import VideoInfo, check_frame_size
from telecine.settings import MAX_PIXELS

# Errors that Pillow raises for files that are damaged, truncated, of another format, or larger than its safety limit.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# An image in a tar file is read whole before its header is parsed.
MAX_MEMBER_BYTES = 2**29
# The formats of animations. A JPEG of a phone may hold several pictures, too, of which the first is the photo.
_MAY_BE_ANIMATED = ("GIF", "PNG", "WEBP")
_EXIF_ORIENTATION = 0x0112
# EXIF orientations that swap height and width. Any other value, also one of a wrong type, does not.
_TRANSPOSED = (5, 6, 7, 8)


def index_image(source: Source, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Index an image by its header. Damage after the header is found when the image is read, except in PNG files.

    Raises:
        DecodeError: it cannot be opened, is animated, is not an image, or is too large.
    """
    with _open_image(source) as image:
        check_frame_size(source, *image.size, max_pixels)
        transposed = image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
        width, height = image.size[::-1] if transposed else image.size
    return VideoInfo(source, width, height, 1.0, array("q", [0]), array("q", [0]), is_image=True)


def read_image(source: Source, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image as uint8 RGB `(H, W, 3)`, rotated as its EXIF data says.

    Transparent pixels are composited onto white, 16-bit images are reduced to 8 bits, and palettes and CMYK are
    converted to RGB.

    Args:
        source: The image.
        size: `(height, width)` to resize to, with an antialiased bicubic filter. The default keeps the size.

    Raises:
        DecodeError: the image is damaged or animated.
    """
    with _open_image(source) as image:
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image takes much memory
        upright = _to_rgb(image)
        if size is not None and upright.size != size[::-1]:
            upright = upright.resize(size[::-1], Image.Resampling.BICUBIC)
        width, height = upright.size
        return torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8).reshape(height, width, 3)


@contextmanager
def _open_image(source: Source) -> Iterator[Image.Image]:
    if isinstance(source, TarMember) and source.size > MAX_MEMBER_BYTES:
        raise DecodeError(f"{source}: {source.size} bytes, more than the {MAX_MEMBER_BYTES} of an image in a tar file")
    try:
        with open_local(source, _open_file) as image:
            if image.format in _MAY_BE_ANIMATED and getattr(image, "is_animated", False):
                raise ValueError(ANIMATED)
            yield image
    except DecodeError:
        raise
    except _DECODE_ERRORS as error:
        raise DecodeError(f"{source}: {_error_message(error)}") from error


def _open_file(source: Path | TarMember) -> Image.Image:
    # Given a path, Pillow reads only the part of the file that it needs.
    return Image.open(source if isinstance(source, Path) else io.BytesIO(read_bytes(source)))


def _error_message(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey. `convert("L")` alone would clip it at 255.
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
