"""telecine's own autoencoder: a small causal 3D VAE that treats the first frame as an image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import NamedTuple

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
from telecine.autoencoders.clip_sizes import ceil_div, check_multiple
from telecine.autoencoders.interface import Reconstruction, VideoAutoencoder, check_input
from telecine.autoencoders.lora import merge_low_rank
from telecine.autoencoders.posterior import DiagonalGaussian
from telecine.autoencoders.pretrained import load_config, load_weights, save_model
from telecine.checks import argument_error, check_count, describe
from telecine.randomness import Generators
from telecine.shapes import Video, check_video

# The initial standard deviation of the posterior is exp(-3) = 0.05. With 1, the noise hides the untrained mean, and the
# decoder learns to ignore the latent for the first few hundred steps.
INITIAL_LOGVAR = -6.0


class Level(NamedTuple):
    """One change of resolution: channels outside and inside, and the factors in time and space."""

    outer: int
    inner: int
    time: int
    space: int


@dataclass(frozen=True)
class CausalVAEConfig:
    """Settings of `CausalVAE`. Factors and multipliers are powers of two.

    Raises:
        ValueError: A setting is invalid; the message contains a valid value.
    """

    time_compression: int = 4
    """Frames per latent frame, a power of two. The first frame has its own latent frame: 1 + 4k frames become 1 + k."""
    spatial_compression: int = 8
    """Pixels per latent position along height and along width, a power of two."""
    latent_channels: int = 16
    """Channels of the latent. More channels keep more detail and compress less."""
    patch_size: int = 2
    """Side of the pixel blocks that are folded into channels before the first layer. Larger is faster and coarser."""
    base_channels: int = 96
    """Channels at full resolution."""
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    """Channels of each level divided by `base_channels`, powers of two, full resolution first. The number of levels is
    1 + max(log2(spatial_compression / patch_size), log2(time_compression))."""
    blocks_per_level: int = 2
    """Residual blocks at each level, in the encoder and in the decoder."""
    time_kernel: int = 3
    """Frames that the first convolution of a residual block sees: the current and earlier ones. With 1, which halves
    the cost, only the layers between levels see motion."""

    def __post_init__(self) -> None:
        if not isinstance(self.channel_multipliers, (list, tuple)):
            raise argument_error(
                "channel_multipliers", "a list of powers of two", self.channel_multipliers, "Use (1, 2)."
            )
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        for name in ("latent_channels", "base_channels", "blocks_per_level", "time_kernel"):
            check_count(name, getattr(self, name))
        for name in ("time_compression", "spatial_compression", "patch_size"):
            check_power_of_two(name, getattr(self, name))
        for multiplier in self.channel_multipliers:
            check_power_of_two("channel_multipliers", multiplier)
        self._check_levels()

    def _check_levels(self) -> None:
        if self.patch_size > self.spatial_compression:
            remedy = f"Use {self.spatial_compression} or less."
            raise argument_error("patch_size", "at most `spatial_compression`", self.patch_size, remedy)
        if len(self.channel_multipliers) != self.num_halvings + 1:
            example = (*(2**i for i in range(self.num_halvings)), 2 ** max(self.num_halvings - 1, 0))
            contract = f"{self.num_halvings + 1} values for {self.num_halvings} halvings"
            raise argument_error("channel_multipliers", contract, self.channel_multipliers, f"Use {example}.")
        for level in self.levels():
            self._check_shortcut(level)

    def _check_shortcut(self, level: Level) -> None:
        factor = level.time * level.space**2
        if level.inner > level.outer * factor or level.outer > level.inner * factor:
            contract = f"values that change by at most {factor} where {factor} positions become one"
            remedy = "Use smaller steps between levels."
            raise argument_error("channel_multipliers", contract, self.channel_multipliers, remedy)

    @property
    def num_halvings(self) -> int:
        """Number of times that the encoder halves a size. It halves time and space together while both remain."""
        return max(log2(self.spatial_compression // self.patch_size), log2(self.time_compression))

    def levels(self) -> Iterator[Level]:
        """Yield the changes of resolution, full resolution first. Time is compressed early, which is cheapest."""
        space_steps, time_steps = log2(self.spatial_compression // self.patch_size), log2(self.time_compression)
        channels = [self.base_channels * multiplier for multiplier in self.channel_multipliers]
        for index, (outer, inner) in enumerate(itertools.pairwise(channels)):
            yield Level(outer, inner, time=2 if index < time_steps else 1, space=2 if index < space_steps else 1)


def check_power_of_two(name: str, value: object) -> None:
    """Raise a `ValueError` unless `value` is 1, 2, 4, 8, ..."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value & (value - 1):
        raise argument_error(name, "a power of two", describe(value), "Use for example 1, 2, 4 or 8.")


def log2(power_of_two: int) -> int:
    """Return the exponent of a power of two."""
    return power_of_two.bit_length() - 1


def residual_blocks(config: CausalVAEConfig, num_channels: int) -> list[nn.Module]:
    """Return one level's residual blocks."""
    return [ResidualBlock(num_channels, config.time_kernel) for _ in range(config.blocks_per_level)]


def build_encoder(config: CausalVAEConfig) -> nn.Sequential:
    """Return the layers from folded pixels `(B, 3 * patch^2, T, H, W)` to the posterior's mean and logvar."""
    first = config.base_channels
    layers: list[nn.Module] = [CausalConv3d(3 * config.patch_size**2, first, (1, 3))]
    for level in config.levels():
        layers += residual_blocks(config, level.outer)
        layers.append(Downsample(level.outer, level.inner, time=level.time, space=level.space))
    last = first * config.channel_multipliers[-1]
    layers += [*residual_blocks(config, last), ChannelNorm(last), nn.SiLU()]
    return nn.Sequential(*layers, init_logvar(CausalConv3d(last, 2 * config.latent_channels, (1, 1))))


def init_logvar(layer: CausalConv3d) -> CausalConv3d:
    """Initialise the logvar half of the encoder's output near `INITIAL_LOGVAR`."""
    half = layer.conv.out_channels // 2
    with torch.no_grad():
        layer.conv.weight[half:] *= 0.1
        layer.conv.bias[half:] = INITIAL_LOGVAR  # type: ignore[index]
    return layer


def build_decoder(config: CausalVAEConfig) -> nn.Sequential:
    """Return the layers from a latent to folded pixels. The last one is a convolution without activation."""
    deepest = config.base_channels * config.channel_multipliers[-1]
    layers: list[nn.Module] = [CausalConv3d(config.latent_channels, deepest, (3, 3))]
    for level in reversed(list(config.levels())):
        layers += residual_blocks(config, level.inner)
        layers.append(Upsample(level.inner, level.outer, time=level.time, space=level.space))
    first = config.base_channels
    layers += [*residual_blocks(config, first), ChannelNorm(first), nn.SiLU()]
    return nn.Sequential(*layers, CausalConv3d(first, 3 * config.patch_size**2, (1, 3)))


class CausalVAE(VideoAutoencoder):
    """A causal 3D VAE (arXiv:1312.6114) that encodes the first frame separately, as MAGVIT-v2 does (arXiv:2310.05737).

    Video `(B, 3, 1 + t*k, s*h, s*w)` in [-1, 1] has a latent `(B, latent_channels, 1 + k, h, w)`, with `t` the time and
    `s` the spatial compression. An image is a video of one frame. Latent frame `i` depends on input frames up to `t*i`,
    output frame `j` on latent frames up to `ceil(j / t)`. The output has no activation and is not clamped. The clips of
    a batch are independent.

    Args:
        config: The architecture. The default is meant for a GPU and clips of 17 x 256 x 256.
    """

    def __init__(self, config: CausalVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or CausalVAEConfig()
        self.encoder = build_encoder(self.config)
        self.decoder = build_decoder(self.config)

    def forward(self, video: Video, sample_posterior: bool = True, generator: Generators = None) -> Reconstruction:
        """Encode, sample (or take the mode) and decode.

        Returns:
            The reconstruction, of the input's shape, and `{"kl_loss": KL divergence per latent element}`; the graph is
            kept.

        Raises:
            ValueError: The video is not `(B, 3, T, H, W)`, or `check_clip` raises.
        """
        posterior = self.encode(video)
        latent = posterior.sample(generator) if sample_posterior else posterior.mode()
        return Reconstruction(video=self.decode(latent), aux=posterior.aux())

    def encode(self, video: Video) -> DiagonalGaussian:
        """Return the posterior of `(B, 3, T, H, W)`, in float32 at least.

        Raises:
            ValueError: The video is not `(B, 3, T, H, W)`, or `check_clip` raises.
        """
        check_input(self, video)
        mean, logvar = self.encoder(fold(video, 1, self.config.patch_size)).chunk(2, dim=1)
        return DiagonalGaussian(mean=mean, logvar=logvar)

    def decode(self, latent: Tensor) -> Video:
        """Return the video `(B, 3, 1 + t*k, s*h, s*w)` of a latent `(B, latent_channels, 1 + k, h, w)`, not clamped.

        Raises:
            ValueError: The latent has another number of axes or channels.
        """
        check_video("latent", latent)
        if latent.shape[1] != self.config.latent_channels:
            contract = f"of shape (B, {self.config.latent_channels}, T, H, W)"
            raise argument_error("latent", contract, latent, "Pass the output of `encode(...).sample()`.")
        return unfold(self.decoder(latent.to(self.last_layer.dtype)), 1, self.config.patch_size)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution."""
        last = self.decoder[-1]
        assert isinstance(last, CausalConv3d)
        weight = last.conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` with the nearest accepted value unless the model reproduces clips of this size."""
        time, space = self.config.time_compression, self.config.spatial_compression
        check_multiple("num_frames", num_frames, step=time, offset=1)
        check_multiple("height", height, step=space)
        check_multiple("width", width, step=space)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest accepted (frames, height, width) that is at least this large."""
        time, space = self.config.time_compression, self.config.spatial_compression
        return (
            1 + time * ceil_div(num_frames - 1, time),
            space * ceil_div(height, space),
            space * ceil_div(width, space),
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` atomically, low-rank updates merged into the weights."""
        save_model(merge_low_rank(self), asdict(self.config), folder)

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the weights that `save_pretrained` wrote into this model, which stays on its device.

        Raises:
            FileNotFoundError: There are no weights.
            ValueError: They are damaged, or names or shapes differ from the model's.
        """
        load_weights(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> CausalVAE:
        """Return the model that `save_pretrained` wrote, on the CPU, in float32 and training mode.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: The configuration is invalid, or the weights do not match it.
        """
        known = [field.name for field in fields(CausalVAEConfig)]
        model = cls(CausalVAEConfig(**load_config(folder, cls.__name__, known)))
        load_weights(model, folder)
        return model
