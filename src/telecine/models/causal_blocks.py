"""Layers of the causal autoencoder. None depends on later frames, on other clips, or on statistics over time.

Those that read the frames before a chunk or the noise level have one signature, `(video, cache, noise_embedding)`; each
ignores what it does not need. See `CausalSequential`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias, TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from telecine.base.shapes import Video
from telecine.ops.checkpoint_call import checkpoint_call
from telecine.ops.unit_vectors import unit_vectors
from telecine.settings.autoencoder import ConvolutionKind

_Layer = TypeVar("_Layer", bound=nn.Module)
FrameCache: TypeAlias = dict[nn.Module, Tensor]
"""The last input frames of each layer that needs them for the next chunk of a clip; empty before the first chunk."""


def _repeat_first_frame(video: Video, count: int) -> Video:
    if count == 0:
        return video
    return torch.cat([video[:, :, :1].expand(-1, -1, count, -1, -1), video], dim=2)


def patchify(video: Video, time: int, space: int, first_frame_apart: bool = True) -> Video:
    """Move blocks of `time x space x space` values into channels.

    Args:
        video: `(B, C, T, H, W)`.
        time: Frames of a block.
        space: Height and width of a block.
        first_frame_apart: Whether the first frame, repeated, is a block of its own.
    """
    padded = _repeat_first_frame(video, time - 1 if first_frame_apart else 0)
    return rearrange(padded, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=time, q=space, r=space)


def unpatchify(video: Video, time: int, space: int, first_frame_apart: bool = True) -> Video:
    """Invert `patchify`: move channels into blocks of `time x space x space`, and keep one copy of the first frame.

    Args:
        video: `(B, C * time * space * space, t, h, w)`.
        time: Frames of a block.
        space: Height and width of a block.
        first_frame_apart: As of `patchify`.
    """
    spread = rearrange(
        video, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=time, q=space, r=space
    )
    return spread[:, :, time - 1 if first_frame_apart else 0 :]


class CausalConv(nn.Module):
    """A convolution over a frame and earlier ones. The first frame pads time, so that an image equals a still video.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Size in time, and in height and width (odd).
        conv: Makes the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        conv: Callable[..., nn.Conv3d] = nn.Conv3d,
    ) -> None:
        super().__init__()
        time, side = kernel
        self.num_repeats = time - 1
        self.conv = conv(
            in_channels, out_channels, (time, side, side), padding=(0, side // 2, side // 2)
        )

    def forward(
        self,
        video: Video,
        cache: FrameCache | None = None,
        noise_embedding: Tensor | None = None,
    ) -> Video:
        """Map the next chunk of a clip, and update its frames in the cache; or map a whole clip without a cache."""
        if cache is None or self.num_repeats == 0:
            return self.conv(_repeat_first_frame(video, self.num_repeats))
        if self in cache:
            padded = torch.cat([cache[self], video], dim=2)
        else:
            padded = _repeat_first_frame(video, self.num_repeats)
        # A view would keep the whole chunk.
        cache[self] = padded[:, :, -self.num_repeats :].clone()
        return self.conv(padded)


class CausalSequential(nn.Sequential):
    """Layers in order."""

    def forward(
        self,
        video: Video,
        cache: FrameCache | None = None,
        noise_embedding: Tensor | None = None,
    ) -> Video:
        """Map a clip, or the next chunk of it.

        Args:
            video: `(B, C, T, H, W)`.
            cache: The frames that layers keep between chunks, which they update; None for a whole clip.
            noise_embedding: Embedding of the noise level, `(B, F)`; None without noise.
        """
        for layer in self:
            video = call_layer(layer, video, cache, noise_embedding)
        return video


def call_layer(
    layer: nn.Module, video: Video, cache: FrameCache | None, noise_embedding: Tensor | None
) -> Video:
    """Return the output of a layer of a network; activations, `Downsample` and `Upsample` take the video alone.

    Args:
        layer: The layer.
        video, cache, noise_embedding: As of `CausalSequential`.
    """
    if isinstance(layer, (CausalConv, CausalSequential, ChannelNorm, ResidualBlock)):
        return cast(Video, layer(video, cache, noise_embedding))
    return cast(Video, layer(video))


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of each position (arXiv:1910.07467): causal and independent of the batch.

    With `noise_features` it is adaptive (arXiv:2212.09748): a linear map of the embedding of a noise level, 0 at the
    start, scales and shifts the channels of each clip.
    """

    def __init__(self, num_channels: int, noise_features: int = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_channels, 1, 1, 1))
        self.modulation: nn.Linear | None = None
        if noise_features > 0:
            self.modulation = init_zero(nn.Linear(noise_features, 2 * num_channels))

    def forward(
        self,
        video: Video,
        cache: FrameCache | None = None,
        noise_embedding: Tensor | None = None,
    ) -> Video:
        """Scale the channels of each position to a root mean square of 1, then each channel by its weight."""
        normed = unit_vectors(video, 1e-6, is_smooth=False) * (
            math.sqrt(video.shape[1]) * self.scale
        )
        if self.modulation is None:
            return normed
        scale, shift = self.modulation(noise_embedding)[..., None, None, None].chunk(2, dim=1)
        return normed * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """`x + f(x)`: `f` convolves space and `time_kernel` frames, then space, and is 0 at the start.

    Args:
        num_channels: Channels of input and output.
        time_kernel: Frames that a position sees: its own and earlier ones.
        noise_features: Size of the embedding of the noise level; 0 without noise.
        convolution: See `CausalVAEConfig.decoder_convolutions`.
    """

    def __init__(
        self,
        num_channels: int,
        time_kernel: int = 1,
        noise_features: int = 0,
        convolution: ConvolutionKind = "3d",
    ) -> None:
        super().__init__()
        self.convolution = convolution
        self.gradient_checkpointing = False
        self.branch = CausalSequential(
            ChannelNorm(num_channels, noise_features),
            nn.SiLU(),
            residual_convolution(num_channels, time_kernel, convolution),
            ChannelNorm(num_channels, noise_features),
            nn.SiLU(),
            residual_convolution(num_channels, 1, convolution),
        )
        last = self.branch[-1]
        # Of two layers, one alone: if both were 0, neither would get a gradient.
        init_zero(last[-1] if isinstance(last, CausalSequential) else last)

    def forward(
        self,
        video: Video,
        cache: FrameCache | None = None,
        noise_embedding: Tensor | None = None,
    ) -> Video:
        """Return a video of the same shape.

        Args:
            video: `(B, num_channels, T, H, W)`.
            cache: The frames that layers keep between chunks; None for a whole clip.
            noise_embedding: Embedding of the noise level, `(B, F)`.
        """
        if self.gradient_checkpointing:
            return video + checkpoint_call(self.branch, video, cache, noise_embedding)
        return video + self.branch(video, cache, noise_embedding)


def residual_convolution(
    num_channels: int, time_kernel: int, kind: ConvolutionKind
) -> CausalConv | CausalSequential:
    """Return a convolution of a residual block over space and time, or two cheaper ones in its place.

    Args:
        num_channels: Channels of input and output.
        time_kernel: Frames that a position sees: its own and earlier ones.
        kind: See `CausalVAEConfig.decoder_convolutions`. Without earlier frames, "2+1d" is the same as "3d".
    """
    if kind == "depthwise":
        of_each_channel = partial(nn.Conv3d, groups=num_channels, bias=False)
        return CausalSequential(
            CausalConv(num_channels, num_channels, (time_kernel, 3), of_each_channel),
            CausalConv(num_channels, num_channels, (1, 1)),
        )
    if kind == "2+1d" and time_kernel > 1:
        without_bias = partial(nn.Conv3d, bias=False)
        return CausalSequential(
            CausalConv(num_channels, num_channels, (1, 3), without_bias),
            CausalConv(num_channels, num_channels, (time_kernel, 1)),
        )
    if kind == "2d":
        return CausalConv(num_channels, num_channels, (1, 3))
    return CausalConv(num_channels, num_channels, (time_kernel, 3))


def init_zero(layer: _Layer) -> _Layer:
    """Set a layer's parameters to 0, so that a residual block starts as the identity (arXiv:1706.02677)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Downsample(nn.Module):
    """Fold 2 x 2 positions into channels and mix these, plus DC-AE's shortcut that averages them (arXiv:2410.10733)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = CausalConv(4 * in_channels, out_channels, (1, 1))

    def forward(self, video: Video) -> Video:
        """Map `(B, in_channels, T, H, W)` to `(B, out_channels, T, H / 2, W / 2)`."""
        patches = patchify(video, 1, 2)
        return self.conv(patches) + patches.unflatten(1, (self.out_channels, -1)).mean(2)


class Upsample(nn.Module):
    """The inverse of `Downsample`: mix channels, plus a shortcut that repeats them, and unpatchify 2 x 2 positions."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.num_repeats = 4 * out_channels // in_channels
        self.conv = CausalConv(in_channels, 4 * out_channels, (1, 1))

    def forward(self, video: Video) -> Video:
        """Map `(B, in_channels, T, H, W)` to `(B, out_channels, T, 2 * H, 2 * W)`."""
        return unpatchify(self.conv(video) + video.repeat_interleave(self.num_repeats, dim=1), 1, 2)
