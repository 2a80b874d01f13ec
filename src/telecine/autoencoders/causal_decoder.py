"""The decoders of the causal autoencoder: a linear map of the latent plus a network that is 0 at the start."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from telecine.autoencoders.causal_blocks import (
    CausalConv,
    CausalSequential,
    ChannelNorm,
    Downsample,
    EarlierFrames,
    Upsample,
    call_layer,
    fold,
    in_temporal_chunks,
    init_zero,
    residual_blocks,
    unfold,
)
from telecine.autoencoders.linear import PatchDecoder
from telecine.base.shapes import Video
from telecine.settings import CausalVAEConfig

# Features of a noise level, and the longest period of their sines, as in DDPM (arXiv:2006.11239).
_LEVEL_FEATURES, _LONGEST_PERIOD = 128, 10_000


class Decoder(nn.Module):
    """From a latent to video: a linear map to patches, and a network that is 0 at the start."""

    def __init__(self, config: CausalVAEConfig, level_features: int = 0) -> None:
        super().__init__()
        self.patch = (config.time_compression, config.patch_size)
        self.linear = PatchDecoder(config.time_compression, config.spatial_compression, config.latent_channels)
        channels = config.channels
        layers: list[nn.Module] = [CausalConv(config.latent_channels, channels[-1], (1, 3))]
        for level, (outer, inner) in reversed(list(enumerate(config.halvings()))):
            layers += [*residual_blocks(config, level + 1, level_features), Upsample(inner, outer)]
        layers += [*residual_blocks(config, 0, level_features), ChannelNorm(channels[0], level_features), nn.SiLU()]
        self.network = CausalSequential(*layers, init_zero(CausalConv(channels[0], config.folded_channels, (1, 3))))
        self.chunk_size = 0  # latent frames; 0 for whole clips

    def forward(self, latent: Tensor) -> Video:
        """Return the video of a latent `(B, latent_channels, 1 + k, h, w)`."""
        residual = in_temporal_chunks(self.network, self.chunk_size, latent)
        return cast(Video, self.linear(latent) + unfold(residual, *self.patch))


class FlowDecoder(Decoder):
    """From a latent and a noisy video to the clean video, see `autoencoders.flow`.

    The noisy video is folded into patches like that of the encoder. It enters before the last blocks, and, through
    layers that halve height and width, before those of each other resolution down to the latent's: folded at once to
    32 x 32 pixels, its first layer would have more weights than all others.

    The network's output `F` is part of the clean video, `x0 = linear(z) + F`; or of the velocity,
    `v = (x_t - linear(z)) / t + F`, so that `x0 = x_t - t v = linear(z) - t F`. At the start both are `linear(z)`.
    """

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__(config, _LEVEL_FEATURES)
        self.predicts_velocity = config.flow.prediction == "velocity"
        halvings = [Downsample(outer, inner) for outer, inner in config.halvings()]
        self.noisy = nn.ModuleList([CausalConv(config.folded_channels, config.channels[0], (1, 3)), *halvings])
        linear = (nn.Linear(_LEVEL_FEATURES, _LEVEL_FEATURES) for _ in range(2))
        self.level = nn.Sequential(next(linear), nn.SiLU(), next(linear), nn.SiLU())

    def forward(self, latent: Tensor, noisy: Video, level: Tensor) -> Video:  # type: ignore[override]
        """Return the predicted clean video.

        Args:
            latent: `(B, latent_channels, 1 + k, h, w)`.
            noisy: The noisy video, of the shape of the result.
            level: `(B,)`, in (0, 1].
        """
        features = self.level(_waves(level).to(latent.dtype))
        folded = fold(noisy.to(latent.dtype), *self.patch)
        residual = in_temporal_chunks(self._residual, self.chunk_size, latent, folded, constant=features)
        video = unfold(residual, *self.patch)
        if self.predicts_velocity:
            video = -level.to(video.dtype).view(-1, 1, 1, 1, 1) * video
        return cast(Video, self.linear(latent) + video)

    def _residual(self, latent: Tensor, folded: Tensor, level: Tensor, earlier: EarlierFrames | None = None) -> Tensor:
        noisy = [folded]
        for layer in self.noisy:
            noisy.append(layer(noisy[-1]))
        x = latent
        for index, layer in enumerate(self.network):
            x = call_layer(layer, x, earlier, level)
            if index == 0 or isinstance(layer, Upsample):
                x = x + noisy.pop()
        return x


def _waves(level: Tensor) -> Tensor:
    """Return cosines and sines of 1000 times levels `(B,)`, `(B, _LEVEL_FEATURES)`."""
    half = torch.arange(_LEVEL_FEATURES // 2, device=level.device, dtype=level.dtype)
    angles = 1000 * level[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * half / len(half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def build_decoder(config: CausalVAEConfig) -> Decoder:
    """Return the decoder that settings name, with random weights."""
    return FlowDecoder(config) if config.decoder == "flow" else Decoder(config)
