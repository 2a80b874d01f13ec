"""Convert frames of FFmpeg to tensors: their size, colours and bits, upright as a player shows them."""

from __future__ import annotations

import struct
from fractions import Fraction

import torch
from av.buffer import Buffer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from torch import Tensor
from torch.nn import functional as F

from telecine.data.hdr import hdr_of, tone_map
from telecine.settings import PixelFormat

# swscale's bicubic filter widens when it shrinks, so it does not alias, and it is the closest of swscale's filters to
# the usual antialiased bicubic: 50 dB on a zone plate resized from 720p to 128, against 30 dB of `AREA` and 36 dB of
# bilinear. Without full chroma interpolation and accurate rounding, 4:2:0 and 4:2:2 come out up to 2 levels too dark.
# PyAV before 18 has no names for these two swscale flags, but accepts their values.
_FULL_CHROMA = 1 << 13
_ACCURATE_ROUNDING = 1 << 18
INTERPOLATION = int(Interpolation.BICUBIC) | _FULL_CHROMA | _ACCURATE_ROUNDING

# FFmpeg's names of the formats that frames are converted to. Planes of 8 bits have the values of "rgb24", and take 0.4
# of its time.
_FORMATS_8_BITS: dict[str | int, str] = {"grey": "gray", "rgb": "gbrp", "rgba": "gbrap"}
_FORMATS_16_BITS: dict[str | int, str] = {"grey": "gray16le", "rgb": "rgb48le", "rgba": "rgba64le"}

_UNSPECIFIED = 2  # the colour matrix of ITU-T H.273
_HD_LINES = 720  # players take a video of as many lines or more for BT.709 if it does not say so
_WHITE = 65535  # of 16 bits
_BT709_LUMA = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
_LIMITED_WHITE = 65283  # of swscale's 16-bit RGB from limited range


def num_quarter_turns(frame: VideoFrame) -> int:
    """Return by how many quarter turns to the left a frame is rotated for display, from 0 to 3."""
    return round(frame.rotation / 90) % 4


def displayed_shape(frame: VideoFrame, aspect: Fraction) -> tuple[int, int, float]:
    """Return height and width in square pixels, and the aspect ratio of stored pixels, all after rotation.

    The longer side of a stored pixel becomes the side of a square pixel, so that no row or column is lost.

    Args:
        frame: A decoded frame.
        aspect: Width of a stored pixel divided by its height, before rotation.
    """
    height = frame.height
    width = frame.width
    if num_quarter_turns(frame) % 2 == 1:
        height, width = width, height
        aspect = 1 / aspect
    ratio = float(aspect)
    return round(height * max(1 / ratio, 1)), round(width * max(ratio, 1)), ratio


class FrameConverter:
    """Converts the decoded frames of one stream to tensors, resized, rotated and mirrored for display.

    Args:
        pixels: The channels and bits of the tensors.
        size: Height and width of the tensors; by default the displayed size of the first frame.
        aspect: Width of a stored pixel divided by its height.
    """

    def __init__(
        self,
        pixels: PixelFormat,
        size: tuple[int, int] | None = None,
        aspect: Fraction = Fraction(1),
    ) -> None:
        self.pixels = pixels
        self.size = size
        self.aspect = aspect
        # Shared by all frames, because it keeps the scaler's tables.
        self._reformatter = VideoReformatter()

    def planes(self, frame: VideoFrame) -> list[Tensor]:
        """Return the planes `(H, W)` of the channels of a frame. They may share memory with FFmpeg's frame."""
        if self.size is None:
            height, width, _ = displayed_shape(frame, self.aspect)
            self.size = height, width
        height, width = self.size
        if num_quarter_turns(frame) % 2 == 1:
            height, width = width, height
        return self._upright(frame, self._stored_planes(frame, height, width))

    def _stored_planes(self, frame: VideoFrame, height: int, width: int) -> list[Tensor]:
        """Return the planes of a frame as it is stored, resized, before it is turned for display."""
        channels = self.pixels.channels
        has_16_bits = self.pixels.bit_depth == 16
        hdr = hdr_of(frame) if self.pixels.hdr == "tone_map" else ""
        if hdr:
            return self._tone_mapped(frame, height, width, hdr)
        has_alpha = any(component.is_alpha for component in frame.format.components)
        is_resized = (frame.height, frame.width) != (height, width)
        if has_alpha and is_resized and channels == "rgba":
            return self._resized_with_alpha(frame, height, width)
        if has_16_bits:
            return self._deep_planes(frame, height, width, channels)
        return _planes(self._reformat(frame, height, width, _FORMATS_8_BITS[channels], channels))

    def _upright(self, frame: VideoFrame, planes: list[Tensor]) -> list[Tensor]:
        """Return planes mirrored and turned as a player shows the frame."""
        has_16_bits = self.pixels.bit_depth == 16
        if has_16_bits:  # as int16 until the end, because PyTorch does not flip uint16
            planes = [plane.to(torch.uint16).view(torch.int16) for plane in planes]
        if _is_mirrored(frame):
            planes = [plane.flip(0) for plane in planes]
        num_turns = num_quarter_turns(frame)
        if num_turns > 0:
            planes = [torch.rot90(plane, num_turns) for plane in planes]
        if has_16_bits:
            planes = [plane.view(torch.uint16) for plane in planes]
        return planes

    def frame(self, frame: VideoFrame) -> Tensor:
        """Return a frame as a tensor `(H, W, C)`."""
        return torch.stack(self.planes(frame), dim=-1)

    def _tone_mapped(self, frame: VideoFrame, height: int, width: int, hdr: str) -> list[Tensor]:
        """Return planes in the colours of BT.709, of the bits of the result."""
        channels = "rgba" if self.pixels.channels == "rgba" else "rgb"
        planes = self._deep_planes(frame, height, width, channels)
        colours = torch.stack(planes[:3], dim=-1).double() / _WHITE
        mapped = tone_map(colours, hdr)
        values = [*mapped.unbind(-1)]
        if self.pixels.channels == "grey":
            values = [mapped @ _BT709_LUMA]
        elif channels == "rgba":
            values.append(planes[3].double() / _WHITE)
        white = _WHITE if self.pixels.bit_depth == 16 else 255
        return [self._as_stored(plane * white) for plane in values]

    def _resized_with_alpha(self, frame: VideoFrame, height: int, width: int) -> list[Tensor]:
        """Return the planes of RGBA, resized with colours multiplied by alpha: no invisible colour is mixed in."""
        planes = self._deep_planes(frame, frame.height, frame.width, "rgba")
        resized = resize_with_alpha(torch.stack(planes)[None].double() / _WHITE, (height, width))
        white = _WHITE if self.pixels.bit_depth == 16 else 255
        return [self._as_stored(plane * white) for plane in resized[0]]

    def _as_stored(self, plane: Tensor) -> Tensor:
        rounded = plane.round()
        return rounded.int() if self.pixels.bit_depth == 16 else rounded.to(torch.uint8)

    def _deep_planes(
        self, frame: VideoFrame, height: int, width: int, channels: str | int
    ) -> list[Tensor]:
        """Return planes with white at 65535, of frames of any bits."""
        if frame.format.components[0].bits > 8:
            deep = self._reformat(frame, height, width, _FORMATS_16_BITS[channels], channels)
            return _scaled_to_16_bits(deep, frame)
        planes = _planes(self._reformat(frame, height, width, _FORMATS_8_BITS[channels], channels))
        return [plane.int() * 257 for plane in planes]

    def _reformat(
        self, frame: VideoFrame, height: int, width: int, pixel_format: str, channels: str | int
    ) -> VideoFrame:
        matrix = None  # that of the file, or BT.601 if it has none
        is_taken_for_hd = self.pixels.matrix == "auto" and frame.height >= _HD_LINES
        if frame.format.is_rgb:
            pass
        elif channels == "grey":
            # The luma as it is: swscale would convert another one to that of BT.601.
            matrix = Colorspace.ITU601
        elif frame.colorspace == _UNSPECIFIED and is_taken_for_hd:
            matrix = Colorspace.ITU709
        return self._reformatter.reformat(
            frame,
            width,
            height,
            pixel_format,
            matrix,
            interpolation=INTERPOLATION,
            threads=1,  # worker processes decode clips in parallel
        )


def resize_with_alpha(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize RGBA with an antialiased bicubic filter, with colours multiplied by alpha meanwhile.

    Args:
        planes: Red, green, blue and alpha in [0, 1], `(N, 4, H, W)`.
        size: Height and width of the result.

    Returns:
        `(N, 4, height, width)` in [0, 1]. Colours are 0 where alpha is.
    """
    colours, alpha = planes.split([3, 1], dim=1)
    multiplied = torch.cat([colours * alpha, alpha], dim=1)
    resized = F.interpolate(multiplied, size, mode="bicubic", antialias=True).clamp(0, 1)
    colours, alpha = resized.split([3, 1], dim=1)
    visible = torch.where(alpha > 0, colours / alpha.clamp(min=1e-6), torch.zeros_like(colours))
    return torch.cat([visible.clamp(max=1), alpha], dim=1)


def _is_mirrored(frame: VideoFrame) -> bool:
    """Return whether a frame is flipped upside down for display, before it is rotated."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV reads no side data of a frame if a type has no name in PyAV, such as EXIF.
        return False
    if not isinstance(matrix, Buffer):
        return False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    return bool(a * d < b * c)


def _planes(converted: VideoFrame) -> list[Tensor]:
    """Return the planes of 8 bits of a frame in the order of the channels."""
    planes = []
    for plane in converted.planes:
        rows = torch.frombuffer(plane, dtype=torch.uint8).view(converted.height, -1)
        planes.append(rows[:, : converted.width])
    if len(planes) == 1:
        return planes
    green, blue, red, *alpha = planes
    return [red, green, blue, *alpha]


def _scaled_to_16_bits(converted: VideoFrame, frame: VideoFrame) -> list[Tensor]:
    """Return the planes of 16 bits, with white at 65535, that swscale has converted from 9 to 16 bits."""
    values = torch.from_numpy(converted.to_ndarray())
    planes = list(values.unbind(-1)) if values.ndim == 3 else [values]
    if frame.format.is_rgb or len(planes) == 1:
        return planes  # exact already
    bits = frame.format.components[0].bits
    full_white = (2**bits - 1) << (16 - bits)  # swscale shifts bits
    num_components = len(frame.format.components)
    has_chroma = num_components > 2
    is_limited = has_chroma and frame.color_range != ColorRange.JPEG
    white = _LIMITED_WHITE if is_limited else full_white
    has_alpha = num_components % 2 == 0
    alpha_white = full_white if has_alpha else _WHITE  # swscale adds an opaque alpha
    scaled = []
    for plane, plane_white in zip(planes, [white, white, white, alpha_white], strict=False):
        scaled.append((plane.double() * _WHITE / plane_white).round_().clamp_(max=_WHITE))
    return scaled
