"""The convolutional layers and blocks of the residual discriminators: they halve space, or space and time; the head."""

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_choice
from telecine.base.precision import autocast_dtype
from telecine.ops.convolution import convolve

PadMode: TypeAlias = Literal["first", "constant"]


class _Conv2d(nn.Conv2d):
    """`nn.Conv2d` with zero padding and a fast double backward."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` as `nn.Conv2d` does."""
        return convolve(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=[int(size) for size in self.padding],
        )


class _Conv3d(nn.Conv3d):
    """`nn.Conv3d` with zero padding, a fast double backward, and correct results in bfloat16 on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` as `nn.Conv3d` does."""
        return padded_conv3d(x, self)


def padded_conv3d(
    x: Tensor, conv: nn.Conv3d, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Return `conv(x)` of videos `(B, C, T, H, W)`, with zero padding.

    Args:
        x: The videos.
        conv: The convolution.
        weight: In place of the convolution's weight.
        bias: In place of the convolution's bias.
    """
    time, height, width = (int(size) for size in conv.padding)
    is_bfloat16 = torch.bfloat16 in (x.dtype, autocast_dtype(x.device))
    if x.shape[2] <= 2 and time > 0 and x.device.type == "cpu" and is_bfloat16:
        # With temporal padding oneDNN's bfloat16 kernel reads uninitialised memory (PyTorch 2.13, AVX-512 BF16): of one
        # frame in the forward, of two in the backward. Results are often NaN. Those of four frames are correct.
        x = F.pad(x, (0, 0, 0, 0, time, time))
        time = 0
    if weight is None:
        weight = conv.weight
    if bias is None:
        bias = conv.bias
    return convolve(x, weight, bias, stride=conv.stride, padding=(time, height, width))


class Blur(nn.Module):
    """Blur space, time or both with the kernel [1, 2, 1] / 4 along each axis, edges replicated.

    A low-pass filter before a stride prevents aliasing (Zhang, arXiv:1904.11486). The kernel is the buffer `f`, which
    is part of the state dict as in the reference's checkpoints.
    """

    f: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor, space_only: bool = False, time_only: bool = False) -> Tensor:
        """Blur `(B, C, [T,] H, W)` to the same shape.

        Args:
            x: Images or videos.
            space_only: Leave time as it is.
            time_only: Leave height and width as they are; only for videos.

        Raises:
            ValueError: Both flags are set, or `time_only` for images.
        """
        if space_only and time_only:
            remedy = "Set neither to blur space and time."
            raise argument_error("time_only", "False if `space_only` is set", time_only, remedy)
        if time_only and x.ndim != 5:
            remedy = "Only videos (B, C, T, H, W) have a time axis."
            raise argument_error(
                "time_only", "False for images", f"True for shape {tuple(x.shape)}", remedy
            )
        taps = (self.f / self.f.sum()).to(x.dtype)
        dims = []
        if x.ndim == 5 and not space_only:
            dims.append(-3)
        if not time_only:
            dims.extend([-2, -1])
        for dim in dims:
            size = x.shape[dim]
            padded = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, size - 1, 1)], dim)
            before = padded.narrow(dim, 0, size)
            here = padded.narrow(dim, 1, size)
            after = padded.narrow(dim, 2, size)
            x = taps[0] * before + taps[1] * here + taps[2] * after
        return x


class SpaceToDepthConv(nn.Sequential):
    """Halve every spatial (or space-time) axis: move each 2 x 2 (x 2) cell into channels, then mix them linearly.

    Both steps together are one convolution of kernel 2 and stride 2. The weight has the shape of the 1x1 convolution
    that follows the rearrangement in published checkpoints (child 1), and is viewed as the larger kernel. Odd axes are
    extended by their last row, column or frame, so that `n` becomes `ceil(n / 2)`.

    Args:
        channels: Channels of input and output.
        dims: 2 for images, 3 for videos.
    """

    def __init__(self, channels: int, dims: int) -> None:
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        super().__init__(nn.Identity(), conv(channels * 2**dims, channels, 1))
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, [T,] H, W)` to half of every axis, rounded up."""
        conv = self[1]
        assert isinstance(conv, nn.Conv2d | nn.Conv3d)
        kernel_size = [2] * self.dims
        kernel = conv.weight.view(x.shape[1], x.shape[1], *kernel_size)
        padding = []  # before and after each axis, the last axis first
        for size in reversed(x.shape[-self.dims :]):
            padding.extend([0, size % 2])
        if any(padding):
            x = F.pad(x, padding, mode="replicate")
        return convolve(x, kernel, conv.bias, stride=kernel_size, padding=[0] * self.dims)


class _ResidualBlock(nn.Module):
    """Two convolutions, `net`, and a skip, both halved; `blurs` blurs space before that."""

    skip_name = "conv_res"  # in published checkpoints

    def __init__(
        self,
        skip: nn.Module,
        net: nn.Module,
        downsample: nn.Module | None,
        blurs: bool,
    ) -> None:
        super().__init__()
        self.add_module(self.skip_name, skip)
        self.net = net
        self.maybe_blur = Blur() if blurs else None
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        skip = getattr(self, self.skip_name)(x)
        x = self.net(x)
        if self.downsample is not None:
            if self.maybe_blur is not None:
                x = self.maybe_blur(x, space_only=True)
            x = self.downsample(x)
        return (x + skip) * 2**-0.5


class DiscriminatorBlock(_ResidualBlock):
    """Two 3x3 convolutions with a 1x1 convolution as skip, from `input_channels` to `filters` channels.

    Maps `(B, C, H, W)` to `(B, filters, ceil(H / 2), ceil(W / 2))`, or without `downsample` to `(B, filters, H, W)`.
    `antialiased_downsample` blurs before the stride.
    """

    def __init__(
        self,
        input_channels: int,
        filters: int,
        downsample: bool = True,
        antialiased_downsample: bool = True,
    ) -> None:
        skip = _Conv2d(input_channels, filters, 1, stride=2 if downsample else 1)
        net = _activated(
            _Conv2d(input_channels, filters, 3, padding=1), _Conv2d(filters, filters, 3, padding=1)
        )
        downsample_conv = SpaceToDepthConv(filters, dims=2) if downsample else None
        super().__init__(skip, net, downsample_conv, antialiased_downsample)


class DiscriminatorBlock3D(_ResidualBlock):
    """Two 3x3x3 convolutions with a strided 1x1x1 convolution as skip, halving time, height and width.

    Maps `(B, input_channels, T, H, W)` to `(B, filters, ceil(T / 2), ceil(H / 2), ceil(W / 2))`.
    `antialiased_downsample` blurs space before the stride, as the reference's weights expect.
    """

    def __init__(
        self,
        input_channels: int,
        filters: int,
        antialiased_downsample: bool = True,
    ) -> None:
        skip = _Conv3d(input_channels, filters, 1, stride=2)
        net = _activated(
            _Conv3d(input_channels, filters, 3, padding=1), _Conv3d(filters, filters, 3, padding=1)
        )
        super().__init__(skip, net, SpaceToDepthConv(filters, dims=3), antialiased_downsample)


class CausalConv3d(nn.Module):
    """3D convolution of the present and past frames only; the shape `(T, H, W)` stays the same.

    Args:
        chan_in: Channels of the input.
        chan_out: Channels of the output.
        kernel_size: Odd size in all three axes, or (time, height, width) with odd height and width.
        pad_mode: Padding before the first frame: copies of the "first" frame, or "constant" zeros.

    Raises:
        ValueError: If the kernel's height or width is even, or the mode is unknown.
    """

    def __init__(
        self,
        chan_in: int,
        chan_out: int,
        kernel_size: int | tuple[int, int, int],
        pad_mode: PadMode = "constant",
    ) -> None:
        super().__init__()
        if isinstance(kernel_size, int):
            kernel_size = (kernel_size, kernel_size, kernel_size)
        time, height, width = kernel_size
        if height % 2 == 0 or width % 2 == 0:
            raise argument_error(
                "kernel_size", "odd in height and width", str(kernel_size), "Use for example 3."
            )
        self.pad_mode = check_choice("pad_mode", pad_mode, get_args(PadMode))
        self.time_pad = time - 1
        self.conv = _Conv3d(
            chan_in, chan_out, (time, height, width), padding=(0, height // 2, width // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, chan_in, T, H, W)` to `(B, chan_out, T, H, W)`."""
        before = x[:, :, :1].expand(-1, -1, self.time_pad, -1, -1)
        if self.pad_mode == "constant":
            before = torch.zeros_like(before)
        return self.conv(torch.cat([before, x], dim=2))


class DownSample3D(nn.Module):
    """Halve space, and optionally pool pairs of frames after the first; a last frame without a partner is kept.

    `with_conv` halves space by a strided 3x3 convolution of each frame, to `out_channels`, not by the mean of 2x2
    cells. `compress_time` maps `1 + n` frames to `1 + ceil(n / 2)`, without changing the first.
    """

    def __init__(
        self,
        in_channels: int,
        with_conv: bool,
        compress_time: bool = False,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = (
            nn.Conv2d(in_channels, out_channels or in_channels, 3, stride=2) if with_conv else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, C', T or 1 + ceil((T - 1) / 2), H // 2, W // 2)`.

        The convolution maps a height or width of 1 to 1.
        """
        if self.compress_time:
            first = x[:, :, :1]
            rest = x[:, :, 1:]
            if rest.shape[2] % 2:
                rest = torch.cat([rest, rest[:, :, -1:]], dim=2)
            pairs = rest.unflatten(2, (-1, 2))
            x = torch.cat([first, pairs.mean(3)], dim=2)
        if self.conv is None:
            return F.avg_pool3d(x, (1, 2, 2))
        # One row and column of zeros at the end, or two if there is only one, so that the kernel fits once.
        bottom = 1 if x.shape[-2] > 1 else 2
        right = 1 if x.shape[-1] > 1 else 2
        padded = F.pad(x, (0, right, 0, bottom))
        # A 2D convolution of every frame as a 3D one of depth 1, which needs no copy into the batch and back.
        return convolve(
            padded,
            self.conv.weight.unsqueeze(2),
            self.conv.bias,
            stride=(1, 2, 2),
            padding=(0, 0, 0),
        )


class DiscriminatorBlock3DWithfirstframe(_ResidualBlock):
    """Two causal 3x3x3 convolutions with a skip, both halved in space and in time, the first frame not pooled.

    Maps `(B, input_channels, T, H, W)` to `(B, filters, 1 + ceil((T - 1) / 2), H // 2, W // 2)`.
    `antialiased_downsample` blurs space before the stride. Copies of the first frame pad the convolutions.
    """

    skip_name = "downsample_res"

    def __init__(
        self,
        input_channels: int,
        filters: int,
        antialiased_downsample: bool = True,
    ) -> None:
        skip = DownSample3D(input_channels, True, compress_time=True, out_channels=filters)
        net = _activated(
            CausalConv3d(input_channels, filters, 3, pad_mode="first"),
            CausalConv3d(filters, filters, 3, pad_mode="first"),
        )
        downsample = DownSample3D(filters, True, compress_time=True, out_channels=filters)
        super().__init__(skip, net, downsample, antialiased_downsample)


def _activated(*convolutions: nn.Module) -> nn.Sequential:
    """Return convolutions with an activation after each."""
    layers = nn.Sequential()
    for convolution in convolutions:
        layers.append(convolution)
        # In place, because the convolution before an activation does not need its output.
        layers.append(nn.LeakyReLU(0.1, inplace=True))
    return layers


class Head(nn.Sequential):
    """Map features to one logit per sample: 3x3 convolution, activation, one linear layer over all positions.

    A map of another size than the linear layer was built for is first resized to that size by adaptive pooling.
    """

    def __init__(self, dim: int, size: tuple[int, int]) -> None:
        conv = _Conv2d(dim, dim, 3, padding=1)
        linear = nn.Linear(dim * size[0] * size[1], 1)
        super().__init__(*_activated(conv), _FlattenAtSize(size), linear, nn.Flatten(0))


class _FlattenAtSize(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        return x.flatten(1)
