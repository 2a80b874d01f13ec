"""Residual blocks that halve space, or space and time, also with the first frame apart; the head, and their sizes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_choice, describe
from telecine.discriminators.layers import (
    Blur,
    Conv2d,
    Conv3d,
    FeedForward,
    LinearSpaceAttention,
    Residual,
    SpaceToDepthConv,
    leaky_relu,
)
from telecine.ops.convolution import convolve

ImageSize: TypeAlias = int | Sequence[int]
"""Height and width: one int for both, or a pair."""
PadMode: TypeAlias = Literal["first", "constant"]
PAD_MODES: tuple[PadMode, ...] = get_args(PadMode)

# The smallest size with at least one block, which published networks use too.
MIN_SIZE = 4


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions with a 1x1 convolution as skip, from `input_channels` to `filters` channels.

    `downsample` halves height and width (odd sizes round up); `antialiased_downsample` blurs before the stride.
    """

    def __init__(
        self, input_channels: int, filters: int, downsample: bool = True, antialiased_downsample: bool = True
    ) -> None:
        super().__init__()
        self.conv_res = Conv2d(input_channels, filters, 1, stride=2 if downsample else 1)
        self.net = _activated(Conv2d(input_channels, filters, 3, padding=1), Conv2d(filters, filters, 3, padding=1))
        self.maybe_blur = Blur() if antialiased_downsample else None
        self.downsample = SpaceToDepthConv(filters, dims=2) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, filters, ceil(H / 2), ceil(W / 2))`, or `(B, filters, H, W)`."""
        skip = self.conv_res(x)
        x = self.net(x)
        if self.downsample is not None:
            x = self.downsample(x if self.maybe_blur is None else self.maybe_blur(x, space_only=True))
        return (x + skip) * 2**-0.5


class DiscriminatorBlock3D(nn.Module):
    """Two 3x3x3 convolutions with a strided 1x1x1 convolution as skip, halving time, height and width.

    From `input_channels` to `filters` channels. `antialiased_downsample` blurs space before the stride, as the
    reference's checkpoints expect, `antialiased_time` time as well.
    """

    def __init__(
        self, input_channels: int, filters: int, antialiased_downsample: bool = True, *, antialiased_time: bool = False
    ) -> None:
        super().__init__()
        self.conv_res = Conv3d(input_channels, filters, 1, stride=2)
        self.net = _activated(Conv3d(input_channels, filters, 3, padding=1), Conv3d(filters, filters, 3, padding=1))
        self.maybe_blur = Blur() if antialiased_downsample else None
        self.antialiased_time = antialiased_time
        self.downsample = SpaceToDepthConv(filters, dims=3)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, filters, ceil(T / 2), ceil(H / 2), ceil(W / 2))`."""
        skip = self.conv_res(x)
        x = self.net(x)
        x = x if self.maybe_blur is None else self.maybe_blur(x, space_only=not self.antialiased_time)
        return (self.downsample(x) + skip) * 2**-0.5


class CausalConv3d(nn.Module):
    """3D convolution of the present and past frames only; the shape `(T, H, W)` stays the same.

    Args:
        kernel_size: Odd size in all three axes, or (time, height, width) with odd height and width.
        pad_mode: Padding before the first frame: copies of the "first" frame, or "constant" zeros.

    Raises:
        ValueError: If the kernel's height or width is even, or the mode is unknown.
    """

    def __init__(
        self, chan_in: int, chan_out: int, kernel_size: int | tuple[int, int, int], pad_mode: PadMode = "constant"
    ) -> None:
        super().__init__()
        time, height, width = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
        if height % 2 == 0 or width % 2 == 0:
            raise argument_error("kernel_size", "odd in height and width", str(kernel_size), "Use for example 3.")
        self.pad_mode = check_choice("pad_mode", pad_mode, PAD_MODES)
        self.time_pad = time - 1
        self.conv = Conv3d(chan_in, chan_out, (time, height, width), padding=(0, height // 2, width // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, chan_in, T, H, W)` to `(B, chan_out, T, H, W)`."""
        before = x[:, :, :1].expand(-1, -1, self.time_pad, -1, -1)
        return self.conv(torch.cat([before if self.pad_mode == "first" else torch.zeros_like(before), x], dim=2))


class DownSample3D(nn.Module):
    """Halve space, and optionally pool pairs of frames after the first; a last frame without a partner is kept.

    `with_conv` halves space by a strided 3x3 convolution of each frame, to `out_channels`, not by the mean of 2x2
    cells. `compress_time` maps `1 + n` frames to `1 + ceil(n / 2)`, without changing the first.
    """

    def __init__(
        self, in_channels: int, with_conv: bool, compress_time: bool = False, out_channels: int | None = None
    ) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(in_channels, out_channels or in_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, C', T or 1 + ceil((T - 1) / 2), H // 2, W // 2)`.

        The convolution maps a height or width of 1 to 1.
        """
        if self.compress_time:
            first, rest = x[:, :, :1], x[:, :, 1:]
            rest = torch.cat([rest, rest[:, :, -1:]], dim=2) if rest.shape[2] % 2 else rest
            x = torch.cat([first, rest.unflatten(2, (-1, 2)).mean(3)], dim=2)
        if self.conv is None:
            return F.avg_pool3d(x, (1, 2, 2))
        # One row and column of zeros at the end, or two if there is only one, so that the kernel fits once.
        right, bottom = (1 if size > 1 else 2 for size in (x.shape[-1], x.shape[-2]))
        padded = F.pad(x, (0, right, 0, bottom))
        # A 2D convolution of every frame as a 3D one of depth 1, which needs no copy into the batch and back.
        return convolve(padded, self.conv.weight.unsqueeze(2), self.conv.bias, stride=(1, 2, 2), padding=(0, 0, 0))


def mean_over_frames(x: Tensor, num_frames: int, num_poolings: int) -> Tensor:
    """Return the mean over time `(B, C, H, W)` of a pooled video; each position has the weight of its pooled frames.

    The first position contains the first of `num_frames` frames, the following ones `2**num_poolings` frames each, and
    the last one the remaining frames.
    """
    span = 2**num_poolings
    # Filled on the device: copying a list of weights to it may make the host wait.
    weights = x.new_full((x.shape[2], 1, 1), span / num_frames)
    weights[-1].fill_(((num_frames - 2) % span + 1) / num_frames)
    weights[0].fill_(1 / num_frames)
    return (x * weights).sum(2)


class DiscriminatorBlock3DWithfirstframe(nn.Module):
    """Two causal 3x3x3 convolutions with a skip, both halved in space and in time, the first frame not pooled.

    From `input_channels` to `filters` channels. `antialiased_downsample` blurs space before the stride,
    `antialiased_time` time as well, including the first frame. `pad_mode` is that of `CausalConv3d`.
    """

    def __init__(
        self,
        input_channels: int,
        filters: int,
        antialiased_downsample: bool = True,
        pad_mode: PadMode = "first",
        *,
        antialiased_time: bool = False,
    ) -> None:
        super().__init__()
        self.antialiased_time = antialiased_time
        self.downsample_res = DownSample3D(input_channels, True, compress_time=True, out_channels=filters)
        self.net = _activated(
            CausalConv3d(input_channels, filters, 3, pad_mode), CausalConv3d(filters, filters, 3, pad_mode)
        )
        self.maybe_blur = Blur() if antialiased_downsample else None
        self.downsample = DownSample3D(filters, True, compress_time=True, out_channels=filters)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, filters, 1 + ceil((T - 1) / 2), H // 2, W // 2)`."""
        skip = self.downsample_res(x)
        x = self.net(x)
        x = x if self.maybe_blur is None else self.maybe_blur(x, space_only=not self.antialiased_time)
        return (self.downsample(x) + skip) * 2**-0.5


def _activated(*convolutions: nn.Module) -> nn.Sequential:
    """Return the convolutions, each followed by an activation."""
    return nn.Sequential(*(layer for convolution in convolutions for layer in (convolution, leaky_relu())))


def with_attention(block: nn.Module, dim: int, dim_head: int, heads: int, ff_mult: int) -> nn.Sequential:
    """Append attention and a feed-forward layer, both residual, to a 2D block with `dim` output channels."""
    attention = Residual(LinearSpaceAttention(dim=dim, dim_head=dim_head, heads=heads))
    return nn.Sequential(block, nn.Sequential(attention, Residual(FeedForward(dim, mult=ff_mult))))


class Head(nn.Sequential):
    """Map features to one logit per sample: 3x3 convolution, activation, one linear layer over all positions.

    A map of another size than the linear layer was built for is first resized to that size by adaptive pooling.
    """

    def __init__(self, dim: int, size: tuple[int, int]) -> None:
        conv, linear = Conv2d(dim, dim, 3, padding=1), nn.Linear(dim * size[0] * size[1], 1)
        super().__init__(conv, leaky_relu(), _FlattenAtSize(size), linear, nn.Flatten(0))


class _FlattenAtSize(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return (x if tuple(x.shape[-2:]) == self.size else F.adaptive_avg_pool2d(x, self.size)).flatten(1)


def as_image_size(image_size: object) -> tuple[int, int]:
    """Return `(height, width)`; raise a `ValueError` unless it is an int or a sequence of two ints, at least 4."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        height, width = (operator.index(length) for length in size)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        contract, got = "an int or a pair of ints (height, width)", describe(image_size)
        raise argument_error("image_size", contract, got, "Pass the size of the training crops.") from None
    if min(height, width) < MIN_SIZE:
        remedy = "Build the discriminator for larger crops, or up-sample small ones first."
        raise argument_error("image_size", f"at least {MIN_SIZE}", f"{height} x {width}", remedy)
    return height, width


def layer_widths(dim: int, image_size: tuple[int, int], channels: int, max_dim: int) -> list[tuple[int, int]]:
    """Return (channels in, channels out) of each block: `4 dim`, doubling, at most `max_dim`."""
    num_blocks = _num_halvings(image_size) + 1
    return list(pairwise([channels] + [min(4 * dim * 2**level, max_dim) for level in range(num_blocks)]))


def head_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the head's map, rounded down as in published checkpoints."""
    height, width = image_size
    return height >> _num_halvings(image_size), width >> _num_halvings(image_size)


def _num_halvings(image_size: tuple[int, int]) -> int:
    """Return the number of halvings that reduce the shorter side to at least 4 and below 8."""
    return min(image_size).bit_length() - 3
