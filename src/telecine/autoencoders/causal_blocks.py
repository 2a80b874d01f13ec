"""The layers of the causal autoencoder: none looks at a later frame, at another clip, or at statistics over time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from telecine.shapes import Video


def repeat_first_frame(video: Video, count: int) -> Video:
    """Put `count` copies of the first frame in front of `(B, C, T, H, W)`."""
    if count == 0:
        return video
    return torch.cat([video[:, :, :1].expand(-1, -1, count, -1, -1), video], dim=2)


def fold(video: Video, time: int, space: int) -> Video:
    """Move `time x space x space` neighbours into channels; the first frame stands alone, as `time` copies of itself.

    `(B, C, 1 + time * k, H, W)` becomes `(B, C * time * space^2, 1 + k, H / space, W / space)`.
    """
    padded = repeat_first_frame(video, time - 1)
    return rearrange(padded, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=time, q=space, r=space)


def unfold(video: Video, time: int, space: int) -> Video:
    """Undo `fold`: spread channels over `time x space x space` neighbours and keep one frame of the first position."""
    spread = rearrange(video, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=time, q=space, r=space)
    return spread[:, :, time - 1 :]


class CausalConv3d(nn.Module):
    """A convolution whose output at a frame sees that frame and earlier ones; space is padded with zeros.

    In time the first frame is repeated in front, so an image is a video that stands still. `stride` in time takes
    `1 + 2k` frames to `1 + k`: output `i` sees inputs up to `2i`.

    Args:
        kernel: taps in time, and along each side in space (odd).
        stride: steps in time and in space.
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
    """RMSNorm over the channels of one position (arXiv 1910.07467): causal and independent of the batch by design."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_channels, 1, 1, 1))

    def forward(self, video: Video) -> Video:
        """Scale each position's channel vector to root mean square 1, then each channel by its weight."""
        return F.normalize(video, dim=1, eps=1e-6) * (math.sqrt(video.shape[1]) * self.scale)


class ResidualBlock(nn.Module):
    """`x + f(x)` with one causal convolution over space and time and one over space; `f` is 0 at the start."""

    def __init__(self, num_channels: int, time_kernel: int = 3) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ChannelNorm(num_channels),
            nn.SiLU(),
            CausalConv3d(num_channels, num_channels, (time_kernel, 3)),
            ChannelNorm(num_channels),
            nn.SiLU(),
            zeroed(CausalConv3d(num_channels, num_channels, (1, 3))),
        )

    def forward(self, video: Video) -> Video:
        """Return a video of the same shape."""
        return video + self.branch(video)


def zeroed(layer: CausalConv3d) -> CausalConv3d:
    """Set a layer's parameters to 0, so that its residual block starts as the identity (arXiv 1706.02677)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Downsample(nn.Module):
    """A strided causal convolution beside a shortcut that folds neighbours into channels and averages groups of them.

    The shortcut is DC-AE's residual autoencoding (arXiv 2410.10733, section 3.2) with the first frame apart.

    Args:
        time: 1 or 2; 2 takes `1 + 2k` frames to `1 + k`.
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
    """A 1 x 1 x 1 convolution unfolded into neighbours, beside a shortcut that repeats channels: `Downsample` mirrored.

    It works at the small size, which costs 27 times less than a convolution after nearest upsampling.
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
