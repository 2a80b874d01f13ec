"""Layers of the causal autoencoder. None depends on later frames, on other clips, or on statistics over time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from telecine.shapes import Video


def repeat_first_frame(video: Video, count: int) -> Video:
    """Prepend `count` copies of the first frame to `(B, C, T, H, W)`."""
    if count == 0:
        return video
    return torch.cat([video[:, :, :1].expand(-1, -1, count, -1, -1), video], dim=2)


def fold(video: Video, time: int, space: int) -> Video:
    """Move blocks of `time x space x space` values into channels; the first frame is repeated `time` times.

    `(B, C, 1 + time * k, H, W)` becomes `(B, C * time * space^2, 1 + k, H / space, W / space)`.
    """
    padded = repeat_first_frame(video, time - 1)
    return rearrange(padded, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=time, q=space, r=space)


def unfold(video: Video, time: int, space: int) -> Video:
    """Invert `fold`: move channels into blocks of `time x space x space`, and keep one copy of the first frame."""
    spread = rearrange(video, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=time, q=space, r=space)
    return spread[:, :, time - 1 :]


class CausalConv3d(nn.Module):
    """A convolution whose output at a frame depends on that frame and earlier ones; space is padded with zeros.

    Time is padded with copies of the first frame, so that an image equals a still video. A `stride` of 2 in time maps
    `1 + 2k` frames to `1 + k`: output `i` depends on inputs up to `2i`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Size in time, and in height and width (odd).
        stride: Stride in time, and in height and width.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        self.num_repeats = kernel[0] - 1
        sizes, steps = (kernel[0], kernel[1], kernel[1]), (stride[0], stride[1], stride[1])
        self.conv = nn.Conv3d(in_channels, out_channels, sizes, steps, (0, kernel[1] // 2, kernel[1] // 2))

    def forward(self, video: Video) -> Video:
        """Map `(B, in_channels, T, H, W)` to `(B, out_channels, T', H', W')`."""
        return self.conv(repeat_first_frame(video, self.num_repeats))


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of each position (arXiv:1910.07467): causal and independent of the batch."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_channels, 1, 1, 1))

    def forward(self, video: Video) -> Video:
        """Scale the channels of each position to a root mean square of 1, then each channel by its weight."""
        return F.normalize(video, dim=1, eps=1e-6) * (math.sqrt(video.shape[1]) * self.scale)


class ResidualBlock(nn.Module):
    """`x + f(x)`, `f` being a causal convolution over space and time, then one over space; `f` is 0 at the start."""

    def __init__(self, num_channels: int, time_kernel: int = 3) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ChannelNorm(num_channels),
            nn.SiLU(),
            CausalConv3d(num_channels, num_channels, (time_kernel, 3)),
            ChannelNorm(num_channels),
            nn.SiLU(),
            init_zero(CausalConv3d(num_channels, num_channels, (1, 3))),
        )

    def forward(self, video: Video) -> Video:
        """Return a video of the same shape."""
        return video + self.branch(video)


def init_zero(layer: CausalConv3d) -> CausalConv3d:
    """Set a layer's parameters to 0, so that its residual block starts as the identity (arXiv:1706.02677)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Downsample(nn.Module):
    """A strided causal convolution plus a shortcut that folds positions into channels and averages groups of them.

    The shortcut is the residual autoencoding of DC-AE (arXiv:2410.10733, section 3.2), with a separate first frame.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        time: 1 or 2; 2 maps `1 + 2k` frames to `1 + k`.
        space: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: int, space: int) -> None:
        super().__init__()
        self.time, self.space, self.out_channels = time, space, out_channels
        self.conv = CausalConv3d(in_channels, out_channels, (2 * time - 1, 3), (time, space))

    def forward(self, video: Video) -> Video:
        """Map `(B, in_channels, 1 + time * k, H, W)` to `(B, out_channels, 1 + k, H / space, W / space)`."""
        folded = fold(video, self.time, self.space)
        return self.conv(video) + folded.unflatten(1, (self.out_channels, -1)).mean(2)


class Upsample(nn.Module):
    """The inverse of `Downsample`: a 1 x 1 x 1 convolution plus a shortcut that repeats channels, then `unfold`.

    It convolves at the low resolution, which costs 27 times less than a convolution after nearest upsampling.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: int, space: int) -> None:
        super().__init__()
        self.time, self.space = time, space
        num_folded = out_channels * time * space**2
        self.num_repeats = num_folded // in_channels
        self.conv = CausalConv3d(in_channels, num_folded, (1, 1))

    def forward(self, video: Video) -> Video:
        """Map `(B, in_channels, 1 + k, H, W)` to `(B, out_channels, 1 + time * k, H * space, W * space)`."""
        shortcut = video.repeat_interleave(self.num_repeats, dim=1)
        return unfold(self.conv(video) + shortcut, self.time, self.space)
