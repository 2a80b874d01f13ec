"""Frames as they are shown: as RGB of 8 bits, shrunk, and of even size."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from telecine.base.shapes import RGBA

MAX_VIDEO_SIDE = 16384
"""Most pixels of a side of a video that x264 writes."""
MAX_PANE = MAX_VIDEO_SIDE // 3 // 16 * 16
"""The largest side of a picture of which a video shows three side by side, without gaps."""
# The side of a square of the chequerboard behind transparent pixels, and its two greys.
_SQUARE = 8
_LIGHT = 204.0
_DARK = 153.0
_RGB = 3


def shrink(frames: Tensor, max_side: int) -> Tensor:
    """Return uint8 frames `(T, H, W, 3)`, resized if a side has more than `max_side` pixels."""
    scale = max_side / max(frames.shape[1:3])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    small = F.interpolate(frames.movedim(-1, 1).float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def depth_range(frames: Tensor) -> tuple[int, int] | None:
    """Return the least and the largest value of frames that `as_shown` shows in colours; None for others."""
    if frames.dtype != torch.uint16 or frames.shape[-1] != 1:
        return None
    return int(frames.int().min()), int(frames.int().max())


def as_shown(frames: Tensor, limits: tuple[int, int] | None = None) -> Tensor:
    """Return frames `(T, H, W, C)` as uint8 RGB `(T, H', W', 3)`.

    Grey is repeated, RGBA composited on a grey chequerboard, and other numbers of channels are grey side by side, in
    rows of up to `MAX_PANE` pixels. With `limits`, grey between them has the colours of "turbo", from blue to red.
    """
    if limits is not None:
        return _in_colours(frames, limits)
    if frames.dtype == torch.uint16:
        frames = (frames.float() / 257).round_().to(torch.uint8)
    num_channels = frames.shape[-1]
    if num_channels == RGBA:
        return _on_chequerboard(frames)
    if num_channels not in (1, _RGB):
        num_columns = min(num_channels, max(1, MAX_PANE // frames.shape[2]))
        filled = F.pad(frames, (0, -num_channels % num_columns))
        frames = rearrange(filled, "t h w (rows n) -> t (rows h) (n w) 1", n=num_columns)
    return frames.expand(-1, -1, -1, 3)


def _in_colours(frames: Tensor, limits: tuple[int, int]) -> Tensor:
    from matplotlib import colormaps  # takes time that other frames must not spend

    colours = torch.from_numpy(colormaps["turbo"](range(256), bytes=True)[:, :3].copy())
    low, high = limits
    positions = (frames[..., 0].float() - low) * 255 / max(high - low, 1)
    return colours[positions.round_().clamp_(0, 255).int()]


def _on_chequerboard(frames: Tensor) -> Tensor:
    rows = torch.arange(frames.shape[1], device=frames.device) // _SQUARE
    columns = torch.arange(frames.shape[2], device=frames.device) // _SQUARE
    is_light = ((rows[:, None] + columns) % 2 == 0)[..., None]
    board = torch.where(is_light, _LIGHT, _DARK)
    colours, alpha = frames.float().split([3, 1], dim=-1)
    return (board + alpha / 255 * (colours - board)).round_().to(torch.uint8)


def pad_to_even(frames: Tensor) -> Tensor:
    """Repeat the last row and column of `(T, H, W, 3)` where their number is odd."""
    for dim in (1, 2):
        size = frames.shape[dim]
        if size % 2:
            frames = torch.cat([frames, frames.narrow(dim, size - 1, 1)], dim)
    return frames
