"""Still images, which are clips of one frame, decoded with Pillow."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av.codec import CodecContext
from av.packet import Packet
from av.video.frame import VideoFrame
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from telecine.data.errors import Deadline, DecodeError, decode_errors
from telecine.data.pixels import FrameConverter, resize_with_alpha
from telecine.data.remote_read import open_local
from telecine.data.source import Source, TarMember, path_or_content
from telecine.settings import RGB, PixelFormat

ANIMATED = (
    "an animated image, which is not read; convert it to a video, e.g. `ffmpeg -i IN.gif OUT.mp4`"
)

# Pillow recognises formats by content, whatever the name. A GIF is opened for its error. A JPEG of a phone may hold
# several pictures, of which the first is the photo. Pillow would run Ghostscript for EPS.
_FORMATS = ("JPEG", "GIF", "PNG", "WEBP")
_ANIMATED_FORMATS = ("GIF", "WEBP")  # an animated PNG is read as a video
# Errors that Pillow raises for files that are damaged, truncated, of another format, or larger than its safety limit.
_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_PNG_DEPTH = 24  # the position of its bit depth
# Largest image in a tar file: it is read whole before its header is parsed.
_MAX_MEMBER_BYTES = 2**29
# Orientations that swap height and width; any other value, also of a wrong type, does not.
_TRANSPOSED = (5, 6, 7, 8)


@contextmanager
def open_image(source: Source, deadline: Deadline | None = None) -> Iterator[Image.Image]:
    """Open an image.

    Raises:
        DecodeError: it is animated, or Pillow fails, also inside the `with` block.
    """
    if isinstance(source, TarMember) and source.size > _MAX_MEMBER_BYTES:
        raise DecodeError(
            f"{source}: {source.size} bytes, more than the {_MAX_MEMBER_BYTES} of an image in a tar file"
        )
    with (
        decode_errors(source, _ERRORS),
        open_local(source, _open_pillow, deadline, reads="whole") as image,
    ):
        if image.format in _ANIMATED_FORMATS and is_animated(image):
            raise ValueError(ANIMATED)
        yield image


def _open_pillow(source: Path | TarMember) -> Image.Image:
    try:
        return Image.open(path_or_content(source), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ValueError("not an image that Pillow can read") from error


def is_animated(image: Image.Image) -> bool:
    """Return whether an image has several frames that are shown one after the other."""
    return getattr(image, "is_animated", False)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an image after the rotation that its EXIF data says."""
    width, height = image.size
    if image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED:
        return height, width
    return width, height


def read_image(
    source: Source, size: tuple[int, int] | None = None, pixels: PixelFormat = RGB
) -> Tensor:
    """Decode an image, rotated as its EXIF data says.

    Palettes and CMYK are converted to RGB, and without RGBA transparent pixels are composited onto white.

    Args:
        source: The file.
        size: Height and width to resize to, with an antialiased bicubic filter; by default the image keeps its size.
        pixels: The channels and bits of the result.

    Returns:
        uint8 or uint16 `(H, W, C)`.

    Raises:
        DecodeError: the image is damaged or animated.
    """
    with open_image(source) as image:
        if pixels.bit_depth == 16:
            frame = _deep_png(source, image, pixels)
            if frame is not None:
                return FrameConverter(pixels, size).frame(frame)
        # `exif_transpose` writes the tags again, and fails if a value does not fit the type of its tag, see
        # https://github.com/python-pillow/Pillow/issues/8965. Without its bytes, it uses what `getexif` has read.
        image.getexif()
        image.info = {name: value for name, value in image.info.items() if "exif" not in name}
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image takes much memory
        converted = _convert(image, pixels)
        if size is not None:
            converted = _resize(converted, size)
        width, height = converted.size
        values = torch.frombuffer(bytearray(converted.tobytes()), dtype=torch.uint8).reshape(
            height, width, -1
        )
        if pixels.bit_depth == 16:
            values = values.int().mul_(257).to(torch.uint16)
        return values


def _deep_png(source: Source, image: Image.Image, pixels: PixelFormat) -> VideoFrame | None:
    """Return the frame of a PNG of 16 bits, which Pillow would reduce to 8; None for another image."""
    if image.format != "PNG":
        return None
    file: Any = image.fp  # type: ignore[attr-defined]
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    if content[_PNG_DEPTH] != 16:
        return None
    decoder: Any = CodecContext.create("png", "r")
    frames = [*decoder.decode(Packet(content)), *decoder.decode(None)]
    frame: VideoFrame = frames[0]
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        remedy = "Set `clips.bit_depth` to 8, or turn its pixels."
        raise DecodeError(f"{source}: a PNG of 16 bits, turned by its EXIF data. {remedy}")
    has_alpha = any(component.is_alpha for component in frame.format.components)
    if has_alpha and pixels.channels != "rgba":
        remedy = "Set `clips.channels` to rgba, or `clips.bit_depth` to 8."
        raise DecodeError(f"{source}: a PNG of 16 bits with alpha. {remedy}")
    return frame


def _convert(image: Image.Image, pixels: PixelFormat) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey. `convert("L")` alone would clip it at 255.
        is_opaque = np.asarray(image) != image.info.pop("transparency", -1)
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
        if not is_opaque.all():
            image.putalpha(Image.fromarray(is_opaque))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if pixels.channels == "rgba":
            return image
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if image.mode != "RGB":
        image = image.convert("RGB")  # also before grey: Pillow's grey of CMYK is another one
    if pixels.channels == "rgb":
        return image
    return image.convert("L" if pixels.channels == "grey" else "RGBA")


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if image.size == (width, height):
        return image
    if image.mode != "RGBA":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    planes = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].double() / 255
    resized = resize_with_alpha(planes, size)[0].movedim(0, -1)
    return Image.fromarray((resized * 255).round().to(torch.uint8).numpy())
