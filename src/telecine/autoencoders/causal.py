"""telecine's own autoencoder: a small causal 3D VAE that treats the first frame as an image."""

from __future__ import annotations

from dataclasses import asdict, fields
from os import PathLike

import torch
from torch import Tensor, nn

from telecine.autoencoders.causal_blocks import (
    CausalConv3d,
    ChannelNorm,
    Downsample,
    ResidualBlock,
    Upsample,
    fold,
    unfold,
)
from telecine.autoencoders.causal_config import CausalVAEConfig
from telecine.autoencoders.lora import merged
from telecine.autoencoders.posterior import DiagonalGaussian
from telecine.autoencoders.pretrained import load_config, load_weights, save_model
from telecine.autoencoders.protocol import Reconstruction
from telecine.autoencoders.sizes import ceil_div, check_multiple
from telecine.randomness import Generators
from telecine.shapes import Video, argument_error, check_video

# A standard deviation of exp(-3) = 0.05 at the start: noise of 1 would drown the untrained mean, and the decoder would
# spend its first hundreds of steps learning to ignore the latent.
INITIAL_LOGVAR = -6.0


def blocks(config: CausalVAEConfig, num_channels: int) -> list[nn.Module]:
    """Return one level's residual blocks."""
    return [ResidualBlock(num_channels, config.time_kernel) for _ in range(config.blocks_per_level)]


def build_encoder(config: CausalVAEConfig) -> nn.Sequential:
    """Return the layers from folded pixels `(B, 3 * patch^2, T, H, W)` to the posterior's mean and logvar."""
    first = config.base_channels
    layers: list[nn.Module] = [CausalConv3d(3 * config.patch_size**2, first, (1, 3))]
    for level in config.levels():
        layers += blocks(config, level.outer)
        layers.append(Downsample(level.outer, level.inner, time=level.time, space=level.space))
    last = first * config.channel_multipliers[-1]
    layers += [*blocks(config, last), ChannelNorm(last), nn.SiLU()]
    return nn.Sequential(*layers, quiet_moments(CausalConv3d(last, 2 * config.latent_channels, (1, 1))))


def quiet_moments(layer: CausalConv3d) -> CausalConv3d:
    """Start the logvar half of the encoder's output near `INITIAL_LOGVAR`."""
    half = layer.conv.out_channels // 2
    with torch.no_grad():
        layer.conv.weight[half:] *= 0.1
        layer.conv.bias[half:] = INITIAL_LOGVAR  # type: ignore[index]
    return layer


def build_decoder(config: CausalVAEConfig) -> nn.Sequential:
    """Return the layers from a latent to folded pixels; the last one is a convolution without activation."""
    deepest = config.base_channels * config.channel_multipliers[-1]
    layers: list[nn.Module] = [CausalConv3d(config.latent_channels, deepest, (3, 3))]
    for level in reversed(list(config.levels())):
        layers += blocks(config, level.inner)
        layers.append(Upsample(level.inner, level.outer, time=level.time, space=level.space))
    first = config.base_channels
    layers += [*blocks(config, first), ChannelNorm(first), nn.SiLU()]
    return nn.Sequential(*layers, CausalConv3d(first, 3 * config.patch_size**2, (1, 3)))


class CausalVAE(nn.Module):
    """A causal 3D variational autoencoder (arXiv 1312.6114) with the first frame apart, as in MAGVIT-v2 (2310.05737).

    Video `(B, 3, 1 + t*k, s*h, s*w)` in [-1, 1] has a latent `(B, latent_channels, 1 + k, h, w)`, with `t` the time and
    `s` the spatial compression; an image is a video of one frame. Latent frame `i` sees input frames up to `t*i`,
    output frame `j` sees latent frames up to `ceil(j / t)`. The output is not squashed or clamped, so gradients live
    outside [-1, 1]. Clips do not influence each other.

    Args:
        config: the architecture; its default suits a GPU at 17 x 256 x 256.
    """

    def __init__(self, config: CausalVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or CausalVAEConfig()
        self.encoder = build_encoder(self.config)
        self.decoder = build_decoder(self.config)

    def forward(self, video: Video, sample_posterior: bool = True, generator: Generators = None) -> Reconstruction:
        """Encode, sample (or take the mode), decode.

        Returns:
            A reconstruction of the input's shape and `{"kl_loss": KL per latent element}`; the graph is kept.

        Raises:
            ValueError: the video is not `(B, 3, T, H, W)` or of a size `check_clip` refuses.
        """
        posterior = self.encode(video)
        latent = posterior.sample(generator) if sample_posterior else posterior.mode()
        return Reconstruction(video=self.decode(latent), aux={"kl_loss": posterior.kl()})

    def encode(self, video: Video) -> DiagonalGaussian:
        """Return the posterior of `(B, 3, T, H, W)`, float32 at least.

        Raises:
            ValueError: the video is not `(B, 3, T, H, W)` or of a size `check_clip` refuses.
        """
        check_video("video", video)
        if video.shape[1] != 3:
            raise argument_error("video", "RGB of shape (B, 3, T, H, W)", video, "Repeat a grey channel 3 times.")
        self.check_clip(*video.shape[2:])
        mean, logvar = self.encoder(fold(video, 1, self.config.patch_size)).chunk(2, dim=1)
        return DiagonalGaussian(mean=mean, logvar=logvar)

    def decode(self, latent: Tensor) -> Video:
        """Return the video `(B, 3, 1 + t*k, s*h, s*w)` of a latent `(B, latent_channels, 1 + k, h, w)`, not clamped.

        Raises:
            ValueError: the latent has another number of axes or channels.
        """
        check_video("latent", latent)
        if latent.shape[1] != self.config.latent_channels:
            contract = f"of shape (B, {self.config.latent_channels}, T, H, W)"
            raise argument_error("latent", contract, latent, "Pass what `encode(...).sample()` returned.")
        return unfold(self.decoder(latent.to(self.last_layer.dtype)), 1, self.config.patch_size)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution."""
        last = self.decoder[-1]
        assert isinstance(last, CausalConv3d)
        weight = last.conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` that names the nearest accepted value unless the model reproduces this size."""
        time, space = self.config.time_compression, self.config.spatial_compression
        check_multiple("num_frames", num_frames, "frames", step=time, offset=1)
        check_multiple("height", height, "rows", step=space)
        check_multiple("width", width, "columns", step=space)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, rows, columns) that the model reproduces and that cover these."""
        time, space = self.config.time_compression, self.config.spatial_compression
        return (
            1 + time * ceil_div(num_frames - 1, time),
            space * ceil_div(height, space),
            space * ceil_div(width, space),
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors`, low-rank updates merged, each whole or not at all."""
        save_model(merged(self), asdict(self.config), folder)

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the weights that `save_pretrained` wrote into this model, which keeps its device.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: they are damaged or another configuration's; the message names what differs.
        """
        load_weights(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> CausalVAE:
        """Return the model that `save_pretrained` wrote, on the CPU, in float32 and training mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the configuration or the weights do not fit; the message names what differs.
        """
        known = [field.name for field in fields(CausalVAEConfig)]
        model = cls(CausalVAEConfig(**load_config(folder, cls.__name__, known)))
        load_weights(model, folder)
        return model
