"""Residual blocks that halve space (2D) or space and time (3D), and the head that turns features into a logit."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.discriminators.attention import FeedForward, LinearSpaceAttention, Residual
from telecine.discriminators.blur import Blur
from telecine.discriminators.convolution import Conv2d, Conv3d
from telecine.ops.double_backward import convolve
from telecine.shapes import argument_error, describe, nearest

# Below this not even the first block has a map to look at; published networks are built down to it.
MIN_SIZE = 4


def leaky_relu() -> nn.Module:
    """Return the discriminators' activation; in place, as the convolution before it does not need its output."""
    return nn.LeakyReLU(0.1, inplace=True)


class SpaceToDepthConv(nn.Sequential):
    """Halve every spatial (or space-time) axis: move each 2 x 2 (x 2) cell into channels, then mix them linearly.

    Both together are one convolution of kernel 2 and stride 2. The parameters keep the shape of the 1x1 convolution
    that stands behind the rearrangement in published checkpoints (child 1), and are viewed as the larger kernel.
    Odd axes are extended by their last row, column or frame, so that `n` becomes `ceil(n / 2)`.
    """

    def __init__(self, channels: int, dims: int) -> None:
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        super().__init__(nn.Identity(), conv(channels * 2**dims, channels, 1))
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, n...)` to `(B, C, ceil(n / 2)...)`."""
        conv = self[1]
        assert isinstance(conv, nn.Conv2d | nn.Conv3d)
        kernel = conv.weight.view(x.shape[1], x.shape[1], *(2,) * self.dims)
        return convolve(_to_even(x, self.dims), kernel, conv.bias, stride=[2] * self.dims, padding=[0] * self.dims)


def _to_even(x: Tensor, dims: int) -> Tensor:
    odd = [size % 2 for size in x.shape[-dims:]]
    if not any(odd):
        return x
    padding = [amount for size in reversed(odd) for amount in (0, size)]
    return F.pad(x, padding, mode="replicate")


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions beside a strided 1x1 one, halving height and width if asked.

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
    """Two 3x3x3 convolutions beside a strided 1x1x1 one, halving time, height and width.

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
    """Let attention and a feed-forward layer, both residual, follow a 2D block of `dim` channels out."""
    attention = Residual(LinearSpaceAttention(dim=dim, dim_head=dim_head, heads=heads))
    return nn.Sequential(block, nn.Sequential(attention, Residual(FeedForward(dim, mult=ff_mult))))


class Head(nn.Sequential):
    """Turn a feature map into one logit a sample: 3x3 convolution, activation, one linear layer over all positions.

    A map of another size than the linear layer was built for is averaged (or stretched) to that size first.
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
    """Return `(height, width)` of an int or a sequence of two, such as the list that a YAML file holds.

    Raises:
        ValueError: If it is neither, or smaller than 4.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        height, width = (operator.index(length) for length in size)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        contract = "an int or a pair of ints (height, width)"
        remedy = "Give the size of the crops you train on."
        raise argument_error("image_size", contract, describe(image_size), remedy) from None
    if min(height, width) < MIN_SIZE:
        raise ValueError(
            f"`image_size` must be at least {MIN_SIZE}, but got {height} x {width}. "
            "Build the discriminator for larger crops, or up-sample small ones first."
        )
    return height, width


def layer_widths(dim: int, image_size: tuple[int, int], channels: int, max_dim: int) -> list[tuple[int, int]]:
    """Return (channels in, channels out) of each block: `4 dim`, doubling, at most `max_dim`.

    There are as many halvings as bring the shorter side to between 4 and 8, and one block more.
    """
    widths = [channels] + [min(4 * dim * 2**level, max_dim) for level in range(num_halvings(image_size) + 1)]
    return list(pairwise(widths))


def num_halvings(image_size: tuple[int, int]) -> int:
    """Return how many halvings bring the shorter side to between 4 and 8."""
    return min(image_size).bit_length() - 3


def head_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the head's map: rounded down, as the linear layer of published checkpoints is."""
    height, width = image_size
    return height >> num_halvings(image_size), width >> num_halvings(image_size)


def check_positive(**counts: object) -> None:
    """Raise a `ValueError` that names the first argument which is not a positive int."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive int, but got {value!r}.")


def check_choice(choices: Sequence[str], **options: object) -> None:
    """Raise a `ValueError` that names the first option which is none of the choices."""
    for name, value in options.items():
        if value not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            remedy = nearest(str(value), choices) or f"{choices[0]!r} is the default."
            raise argument_error(name, f"one of {known}", describe(value), remedy)


def check_input(x: Tensor, ndim: int, channels: int) -> None:
    """Raise a `ValueError` unless `x` is a batch of images or videos with the channels the network was built for."""
    shape = "(B, C, H, W)" if ndim == 4 else "(B, C, T, H, W)"
    if x.ndim != ndim or x.shape[1] != channels:
        raise ValueError(f"The discriminator's input must be {shape} with C = {channels}, but got {tuple(x.shape)}.")
