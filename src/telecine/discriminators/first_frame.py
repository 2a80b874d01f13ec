"""Causal convolution and down-sampling that never pool a video's first frame with others, and a block of both."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error, check_choice
from telecine.discriminators.layers import Blur, Conv3d, leaky_relu
from telecine.ops.double_backward import convolve

PadMode: TypeAlias = Literal["first", "constant"]
PAD_MODES: tuple[PadMode, ...] = get_args(PadMode)


class CausalConv3d(nn.Module):
    """3D convolution of the present and past frames only; the shape `(T, H, W)` stays the same.

    Args:
        chan_in: Channels in.
        chan_out: Channels out.
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
        before = before if self.pad_mode == "first" else torch.zeros_like(before)
        return self.conv(torch.cat([before, x], dim=2))


class DownSample3D(nn.Module):
    """Halve space, and optionally pool pairs of frames after the first; a last frame without a partner is kept.

    Args:
        in_channels: Channels in.
        with_conv: Halve space by a strided 3x3 convolution of each frame, not by the mean of 2x2 cells.
        compress_time: Map `1 + n` frames to `1 + ceil(n / 2)`, without changing the first.
        out_channels: Channels out of the convolution; `in_channels` by default.
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
        x = _pool_time(x) if self.compress_time else x
        if self.conv is None:
            return F.avg_pool3d(x, (1, 2, 2))
        # One row and column of zeros at the end, or two if there is only one, so that the kernel fits once.
        right, bottom = (1 if size > 1 else 2 for size in (x.shape[-1], x.shape[-2]))
        # A 2D convolution of every frame as a 3D one of depth 1, which needs no copy into the batch and back.
        padded = F.pad(x, (0, right, 0, bottom))
        weight = self.conv.weight.unsqueeze(2)
        return convolve(padded, weight, self.conv.bias, stride=(1, 2, 2), padding=(0, 0, 0))


def _pool_time(x: Tensor) -> Tensor:
    first, rest = x[:, :, :1], x[:, :, 1:]
    if rest.shape[2] % 2:
        rest = torch.cat([rest, rest[:, :, -1:]], dim=2)
    return torch.cat([first, rest.unflatten(2, (-1, 2)).mean(3)], dim=2)


def mean_over_frames(x: Tensor, num_frames: int, num_poolings: int) -> Tensor:
    """Average over time, weighting each position by the number of frames that were pooled into it.

    The first position contains the first frame, the following ones `2**num_poolings` frames each, and the last one the
    remaining frames.

    Args:
        x: The pooled video `(B, C, 1 + ceil((num_frames - 1) / 2**num_poolings), H, W)`.
        num_frames: Number of frames before the first pooling.
        num_poolings: Number of poolings of pairs of frames.

    Returns:
        The weighted mean `(B, C, H, W)`.
    """
    span = 2**num_poolings
    # Filled on the device: copying a list of weights to it may make the host wait.
    weights = x.new_full((x.shape[2], 1, 1), span / num_frames)
    weights[-1].fill_(((num_frames - 2) % span + 1) / num_frames)
    weights[0].fill_(1 / num_frames)
    return (x * weights).sum(2)


class DiscriminatorBlock3DWithfirstframe(nn.Module):
    """Two causal 3x3x3 convolutions with a skip, both halved in space and in time, the first frame not pooled.

    Args:
        input_channels: Channels in.
        filters: Channels out.
        antialiased_downsample: Blur space before the stride.
        pad_mode: Padding of the causal convolutions before the first frame.
        antialiased_time: Blur time as well, including the first frame.
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
        self.net = nn.Sequential(
            CausalConv3d(input_channels, filters, 3, pad_mode),
            leaky_relu(),
            CausalConv3d(filters, filters, 3, pad_mode),
            leaky_relu(),
        )
        self.maybe_blur = Blur() if antialiased_downsample else None
        self.downsample = DownSample3D(filters, True, compress_time=True, out_channels=filters)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` to `(B, filters, 1 + ceil((T - 1) / 2), H // 2, W // 2)`."""
        skip = self.downsample_res(x)
        x = self.net(x)
        x = x if self.maybe_blur is None else self.maybe_blur(x, space_only=not self.antialiased_time)
        return (self.downsample(x) + skip) * 2**-0.5
