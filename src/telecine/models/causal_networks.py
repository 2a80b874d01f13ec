"""The encoder and the decoders of `CausalVAE`: each a linear map of patches, and a network that is 0 at the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from telecine.base.shapes import RGBA, Video
from telecine.models.causal_blocks import (
    CausalConv,
    CausalSequential,
    ChannelNorm,
    Downsample,
    FrameCache,
    ResidualBlock,
    Upsample,
    call_layer,
    init_zero,
    patchify,
    unpatchify,
)
from telecine.models.channels import RGBAConv3d
from telecine.models.linear import PatchDecoder, PatchEncoder
from telecine.ops.checkpoint_call import checkpoint_call
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import ConvolutionKind

# The initial standard deviation of the posterior is exp(-3) = 0.05, that of the means 1. With more noise, the decoder
# learns to ignore the latent for the first few hundred steps.
_INITIAL_LOGVAR = -6.0
# Size of the embedding of a noise level, and the longest period of its sines, as in DDPM (arXiv:2006.11239).
_NOISE_FEATURES = 128
_LONGEST_PERIOD = 10_000


def _residual_blocks(
    config: CausalVAEConfig,
    stage: int,
    noise_features: int = 0,
    convolutions: Sequence[ConvolutionKind] = (),
) -> list[nn.Module]:
    """Return the blocks of a stage; those at the lowest resolution depend on earlier frames.

    Args:
        config: The architecture.
        stage: The level of `blocks_per_level`, 0 at the highest resolution.
        noise_features: Size of the embedding of the noise level; 0 without noise.
        convolutions: The kind of convolutions of each stage; empty for "3d".
    """
    convolution = convolutions[stage] if convolutions else "3d"
    is_lowest = stage == len(config.channels) - 1
    time_kernel = config.time_kernel if is_lowest else 1
    return [
        ResidualBlock(config.channels[stage], time_kernel, noise_features, convolution)
        for _ in range(config.blocks_per_level)
    ]


def _in_temporal_chunks(network: Callable[..., Video], size: int, *videos: Video) -> Video:
    """Return `network(*videos)`; for a `size` above 0, in chunks of `size` frames that the backward recomputes.

    Then the network also gets `cache`, the `FrameCache` of the chunks.
    """
    if size == 0:
        return network(*videos)
    cache: FrameCache = {}
    chunks = zip(*(video.split(size, dim=2) for video in videos), strict=True)
    return torch.cat([checkpoint_call(network, *chunk, cache=cache) for chunk in chunks], dim=2)


class Encoder(nn.Module):
    """From video to the posterior's mean and logvar: a linear map of patches, and a network that is 0 at the start."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        self.patch = (config.time_compression, config.patch_size)
        self.first_frame_apart = config.first_frame_apart
        self.linear = PatchEncoder(
            config.time_compression,
            config.spatial_compression,
            config.latent_channels,
            config.in_channels,
            config.first_frame_apart,
        )
        self.latent_channels = config.latent_channels
        has_logvar = config.bottleneck == "gaussian"
        num_outputs = 2 * self.latent_channels if has_logvar else self.latent_channels
        lowest_channels = config.channels[-1]

        conv = RGBAConv3d if config.in_channels == RGBA else nn.Conv3d
        layers: list[nn.Module] = [
            CausalConv(config.patch_channels, config.channels[0], (1, 3), conv)
        ]
        for stage, (outer, inner) in enumerate(config.downsamplings()):
            layers.extend(_residual_blocks(config, stage))
            layers.append(Downsample(outer, inner))
        layers.extend(_residual_blocks(config, len(config.channels) - 1))
        layers.append(ChannelNorm(lowest_channels))
        layers.append(nn.SiLU())
        last = init_zero(CausalConv(lowest_channels, num_outputs, (1, 1)))
        if has_logvar:
            nn.init.constant_(last.conv.bias[self.latent_channels :], _INITIAL_LOGVAR)  # type: ignore[index]
        layers.append(last)
        self.network = CausalSequential(*layers)
        self.chunk_size = 0  # latent frames; 0 for whole clips

    def forward(
        self, video: Video, cache: FrameCache | None = None, first_chunk: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return mean and logvar, `(B, latent_channels, k, h, w)`; logvar is empty with a discrete bottleneck.

        Args:
            video: A whole clip, or a chunk of a stream, `(B, C, T, H, W)`.
            cache: The frames that layers keep between the chunks of a stream; None for a whole clip.
            first_chunk: Whether no other chunk is before it.
        """
        patches = patchify(video, *self.patch, self.first_frame_apart and first_chunk)
        if cache is None:
            outputs = _in_temporal_chunks(self.network, self.chunk_size, patches)
        else:
            outputs = self.network(patches, cache=cache)
        residual, logvar = outputs.tensor_split([self.latent_channels], dim=1)
        return self.linear(video, first_chunk=first_chunk) + residual, logvar


class Decoder(nn.Module):
    """From a latent to video: a linear map to patches, and a network that is 0 at the start.

    Args:
        config: The architecture.
        noise_features: Size of the embedding of the noise level, which the norms take; 0 for a decoder without noise.
    """

    def __init__(self, config: CausalVAEConfig, noise_features: int = 0) -> None:
        super().__init__()
        self.patch = (config.time_compression, config.patch_size)
        self.first_frame_apart = config.first_frame_apart
        self.linear = PatchDecoder(
            config.time_compression,
            config.spatial_compression,
            config.latent_channels,
            config.in_channels,
            config.first_frame_apart,
        )
        kinds = config.decoder_convolutions
        layers: list[nn.Module] = [CausalConv(config.latent_channels, config.channels[-1], (1, 3))]
        for stage, (outer, inner) in reversed(list(enumerate(config.downsamplings()))):
            layers.extend(_residual_blocks(config, stage + 1, noise_features, kinds))
            layers.append(Upsample(inner, outer))
        layers.extend(_residual_blocks(config, 0, noise_features, kinds))
        layers.append(ChannelNorm(config.channels[0], noise_features))
        layers.append(nn.SiLU())
        layers.append(init_zero(CausalConv(config.channels[0], config.patch_channels, (1, 3))))
        self.network = CausalSequential(*layers)
        self.chunk_size = 0  # latent frames; 0 for whole clips

    def forward(
        self, latent: Tensor, cache: FrameCache | None = None, first_chunk: bool = True
    ) -> Video:
        """Return the video of a latent.

        Args:
            latent: That of a whole clip, or a chunk of a stream, `(B, latent_channels, k, h, w)`.
            cache: The frames that layers keep between the chunks of a stream; None for a whole clip.
            first_chunk: Whether no other chunk is before it.
        """
        if cache is None:
            residual = _in_temporal_chunks(self.network, self.chunk_size, latent)
        else:
            residual = self.network(latent, cache=cache)
        is_apart = self.first_frame_apart and first_chunk
        # The linear map first: its intermediate values are freed before `unpatchify` makes a video.
        video = self.linear(latent, first_chunk=first_chunk)
        return cast(Video, video + unpatchify(residual, *self.patch, is_apart))


class FlowDecoder(Decoder):
    """From a latent and a noisy video to the clean video, see `telecine.models.flow`.

    The noisy video is patchified as that of the encoder. It enters before the last blocks, and, through layers that
    halve height and width, before those of each lower resolution. In patches for the latent's resolution at once, of
    32 x 32 pixels, its first layer would have more weights than all others.

    The network's output `F` is part of the clean video, `x0 = linear(z) + F`; or of the velocity,
    `v = (x_t - linear(z)) / t + F`, so that `x0 = x_t - t v = linear(z) - t F`. At the start both are `linear(z)`.

    Args:
        config: The architecture.
    """

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__(config, _NOISE_FEATURES)
        self.predicts_velocity = config.flow.prediction == "velocity"
        downsamplings = [Downsample(outer, inner) for outer, inner in config.downsamplings()]
        first = CausalConv(config.patch_channels, config.channels[0], (1, 3))
        self.noisy = nn.ModuleList([first, *downsamplings])
        self.level = nn.Sequential(  # the MLP of the noise level, by its name in saved weights
            nn.Linear(_NOISE_FEATURES, _NOISE_FEATURES),
            nn.SiLU(),
            nn.Linear(_NOISE_FEATURES, _NOISE_FEATURES),
            nn.SiLU(),
        )

    def forward(  # type: ignore[override]
        self,
        latent: Tensor,
        noisy: Video,
        noise_level: Tensor,
        cache: FrameCache | None = None,
        first_chunk: bool = True,
    ) -> Video:
        """Return the prediction of the clean video, `(B, C, T, H, W)`.

        Args:
            latent: That of a whole clip, or a chunk of a stream, `(B, latent_channels, k, h, w)`.
            noisy: The noisy video, `(B, C, T, H, W)`.
            noise_level: The noise level of each clip, `(B,)` in (0, 1].
            cache: The frames that layers keep between the chunks of a stream; None for a whole clip.
            first_chunk: Whether no other chunk is before it.
        """
        embedding = self.level(_sinusoidal_embedding(noise_level).to(latent.dtype))
        is_apart = self.first_frame_apart and first_chunk
        patches = patchify(noisy.to(latent.dtype), *self.patch, is_apart)
        network = partial(self._residual, embedding)
        if cache is None:
            residual = _in_temporal_chunks(network, self.chunk_size, latent, patches)
        else:
            residual = network(latent, patches, cache=cache)
        video = unpatchify(residual, *self.patch, is_apart)
        if self.predicts_velocity:
            video = -noise_level.view(-1, 1, 1, 1, 1) * video
        return cast(Video, self.linear(latent, first_chunk=first_chunk) + video)

    def _residual(
        self,
        noise_embedding: Tensor,
        latent: Tensor,
        patches: Tensor,
        cache: FrameCache | None = None,
    ) -> Tensor:
        noisy = [patches]  # then at each resolution, the highest first
        for layer in self.noisy:
            noisy.append(layer(noisy[-1]))
        x = latent
        for index, layer in enumerate(self.network):
            x = call_layer(layer, x, cache, noise_embedding)
            if index == 0 or isinstance(layer, Upsample):
                x = x + noisy.pop()
        return x


def build_decoder(config: CausalVAEConfig) -> Decoder:
    """Return the decoder that settings name, with random weights."""
    return FlowDecoder(config) if config.decoder == "flow" else Decoder(config)


def _sinusoidal_embedding(noise_level: Tensor) -> Tensor:
    """Return cosines and sines `(B, _NOISE_FEATURES)` of 1000 times the noise levels `(B,)`."""
    half = torch.arange(_NOISE_FEATURES // 2, device=noise_level.device, dtype=noise_level.dtype)
    angles = 1000 * noise_level[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * half / len(half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)
