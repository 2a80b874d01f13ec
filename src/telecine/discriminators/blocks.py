"""Residual blocks that halve space (2D) or space and time (3D), the head that returns logits, and their sizes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error, describe
from telecine.discriminators.attention import FeedForward, LinearSpaceAttention, Residual
from telecine.discriminators.layers import Blur, Conv2d, Conv3d, SpaceToDepthConv, leaky_relu

ImageSize: TypeAlias = int | Sequence[int]
"""Height and width: one int for both, or a pair."""

# The smallest size with at least one block, which published networks use too.
MIN_SIZE = 4


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions with a strided 1x1 convolution as skip, optionally halving height and width.

    Args:
        input_channels: Channels in.
        filters: Channels out.
        downsample: Halve height and width (odd sizes round up).
        antialiased_downsample: Blur before the stride.
    """

    def __init__(
        self, input_channels: int, filters: int, downsample: bool = True, antialiased_downsample: bool = True
    ) -> None:
        super().__init__()
        self.conv_res = Conv2d(input_channels, filters, 1, stride=2 if downsample else 1)
        self.net = nn.Sequential(
            Conv2d(input_channels, filters, 3, padding=1),
            leaky_relu(),
            Conv2d(filters, filters, 3, padding=1),
            leaky_relu(),
        )
        self.maybe_blur = Blur() if antialiased_downsample else None
        self.downsample = SpaceToDepthConv(filters, dims=2) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, filters, ceil(H / 2), ceil(W / 2))`, or `(B, filters, H, W)`."""
        skip = self.conv_res(x)
        x = self.net(x)
        if self.downsample is not None:
            x = x if self.maybe_blur is None else self.maybe_blur(x, space_only=True)
            x = self.downsample(x)
        return (x + skip) * 2**-0.5


class DiscriminatorBlock3D(nn.Module):
    """Two 3x3x3 convolutions with a strided 1x1x1 convolution as skip, halving time, height and width.

    Args:
        input_channels: Channels in.
        filters: Channels out.
        antialiased_downsample: Blur space before the stride, as the reference's checkpoints expect.
        antialiased_time: Blur time as well.
    """

    def __init__(
        self,
        input_channels: int,
        filters: int,
        antialiased_downsample: bool = True,
        *,
        antialiased_time: bool = False,
    ) -> None:
        super().__init__()
        self.conv_res = Conv3d(input_channels, filters, 1, stride=2)
        self.net = nn.Sequential(
            Conv3d(input_channels, filters, 3, padding=1),
            leaky_relu(),
            Conv3d(filters, filters, 3, padding=1),
            leaky_relu(),
        )
        self.maybe_blur = Blur() if antialiased_downsample else None
        self.antialiased_time = antialiased_time
        self.downsample = SpaceToDepthConv(filters, dims=3)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, filters, ceil(T / 2), ceil(H / 2), ceil(W / 2))`."""
        skip = self.conv_res(x)
        x = self.net(x)
        x = x if self.maybe_blur is None else self.maybe_blur(x, space_only=not self.antialiased_time)
        return (self.downsample(x) + skip) * 2**-0.5


def with_attention(block: nn.Module, dim: int, dim_head: int, heads: int, ff_mult: int) -> nn.Sequential:
    """Append attention and a feed-forward layer, both residual, to a 2D block with `dim` output channels."""
    attention = Residual(LinearSpaceAttention(dim=dim, dim_head=dim_head, heads=heads))
    return nn.Sequential(block, nn.Sequential(attention, Residual(FeedForward(dim, mult=ff_mult))))


class Head(nn.Sequential):
    """Map features to one logit per sample: 3x3 convolution, activation, one linear layer over all positions.

    A map of another size than the linear layer was built for is first resized to that size by adaptive pooling.
    """

    def __init__(self, dim: int, size: tuple[int, int]) -> None:
        height, width = size
        super().__init__(
            Conv2d(dim, dim, 3, padding=1),
            leaky_relu(),
            _FlattenAtSize(size),
            nn.Linear(dim * height * width, 1),
            nn.Flatten(0),
        )


class _FlattenAtSize(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        return rearrange(x, "b c h w -> b (c h w)")


def as_image_size(image_size: object) -> tuple[int, int]:
    """Return `(height, width)` of an int or a sequence of two ints, such as a list from a YAML file.

    Raises:
        ValueError: If it is neither, or smaller than 4.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        height, width = (operator.index(length) for length in size)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        contract = "an int or a pair of ints (height, width)"
        remedy = "Pass the size of the training crops."
        raise argument_error("image_size", contract, describe(image_size), remedy) from None
    if min(height, width) < MIN_SIZE:
        remedy = "Build the discriminator for larger crops, or up-sample small ones first."
        raise argument_error("image_size", f"at least {MIN_SIZE}", f"{height} x {width}", remedy)
    return height, width


def layer_widths(dim: int, image_size: tuple[int, int], channels: int, max_dim: int) -> list[tuple[int, int]]:
    """Return (channels in, channels out) of each block: `4 dim`, doubling, at most `max_dim`.

    The number of blocks is one more than `num_halvings`.
    """
    widths = [channels] + [min(4 * dim * 2**level, max_dim) for level in range(num_halvings(image_size) + 1)]
    return list(pairwise(widths))


def num_halvings(image_size: tuple[int, int]) -> int:
    """Return how many halvings reduce the shorter side to at least 4 and below 8."""
    return min(image_size).bit_length() - 3


def head_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the head's map, rounded down as in published checkpoints."""
    height, width = image_size
    return height >> num_halvings(image_size), width >> num_halvings(image_size)


def check_input(x: Tensor, ndim: int, channels: int) -> None:
    """Raise a `ValueError` unless `x` is a batch of images or videos with the network's number of channels."""
    shape = "(B, C, H, W)" if ndim == 4 else "(B, C, T, H, W)"
    if x.ndim != ndim or x.shape[1] != channels:
        same_ndim = "Build the discriminator with the `channels` of its input."
        remedy = same_ndim if x.ndim == ndim else "Images have 4 axes, videos 5."
        raise argument_error("x", f"of shape {shape} with C = {channels}", f"shape {tuple(x.shape)}", remedy)
