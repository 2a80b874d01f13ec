"""The settings of `CausalVAE`, and their checks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from telecine.autoencoders.clip_sizes import ceil_div
from telecine.base.checks import argument_error, check_choice, check_count, check_weight, describe

# Configurations come from others, too: larger networks would take hours to build.
LARGEST = {
    "latent_channels": 2**16,
    "base_channels": 2**16,
    "blocks_per_level": 256,
    "time_kernel": 256,
    "lfq_bits": 18,
}
LARGEST_CODEBOOK = 2 ** LARGEST["lfq_bits"]
BOTTLENECKS = ("gaussian", "fsq", "lfq")


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
    patch_size: int = 4
    """Side of the pixel blocks that are folded into channels before the first layer, with all frames of a latent frame.
    Larger is faster and coarser."""
    base_channels: int = 128
    """Channels at the highest resolution."""
    channel_multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level divided by `base_channels`, powers of two, the highest resolution first. The number of
    levels is 1 + log2(spatial_compression / patch_size)."""
    blocks_per_level: int = 2
    """Residual blocks at each level, in the encoder and in the decoder."""
    time_kernel: int = 2
    """Latent frames that a residual block of the lowest resolution sees, the current and earlier ones."""
    bottleneck: Literal["gaussian", "fsq", "lfq"] = "gaussian"
    """What limits the latent: noise and a KL divergence ("gaussian"), or a codebook. Each channel is then rounded to
    one of a few values ("fsq", finite scalar quantization) or to -1 or 1 ("lfq", lookup-free quantization), and
    `latent_channels` divided by the channels of a code is the number of codes of a position."""
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    """With "fsq": how many values each channel of a code has. Their product is the size of the codebook."""
    lfq_bits: int = 8
    """With "lfq": channels of a code; the codebook has 2^bits of them."""
    lfq_entropy_weight: float = 0.1
    """With "lfq": weight of the entropy of each code less that of all codes of a batch, so that all of the codebook is
    used. Like the next, it is multiplied by `objective.quantizer_aux_loss_weight`, which is then 1 or so."""
    lfq_commitment_weight: float = 0.25
    """With "lfq": weight of the squared distance of the encoder's output from its code."""

    def __post_init__(self) -> None:
        if not isinstance(self.channel_multipliers, (list, tuple)):
            raise argument_error(
                "channel_multipliers", "a list of powers of two", self.channel_multipliers, "Use (1, 2)."
            )
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        for name, largest in LARGEST.items():
            if check_count(name, getattr(self, name)) > largest:
                raise argument_error(name, f"at most {largest}", getattr(self, name), "Use less.")
        for name in ("time_compression", "spatial_compression", "patch_size"):
            check_power_of_two(name, getattr(self, name))
        for multiplier in self.channel_multipliers:
            check_power_of_two("channel_multipliers", multiplier)
        self._check_levels()
        self._check_codes()

    def _check_levels(self) -> None:
        if self.patch_size > self.spatial_compression:
            remedy = f"Use {self.spatial_compression} or less."
            raise argument_error("patch_size", "at most `spatial_compression`", self.patch_size, remedy)
        num_halvings = (self.spatial_compression // self.patch_size).bit_length() - 1
        if len(self.channel_multipliers) != num_halvings + 1:
            example = tuple(2**i for i in range(num_halvings + 1))
            contract = f"one value for each level, of which there are {num_halvings + 1}"
            raise argument_error("channel_multipliers", contract, self.channel_multipliers, f"Use {example}.")
        for outer, inner in self.halvings():
            if max(outer, inner) > 4 * min(outer, inner):
                contract = "values that change by at most 4 where 2 x 2 positions become one"
                remedy = "Use smaller steps between levels."
                raise argument_error("channel_multipliers", contract, self.channel_multipliers, remedy)

    def _check_codes(self) -> None:
        check_choice("bottleneck", self.bottleneck, BOTTLENECKS)
        if not isinstance(self.fsq_levels, (list, tuple)) or not self.fsq_levels:
            raise argument_error("fsq_levels", "a list of numbers of values", self.fsq_levels, "Use (8, 5, 5, 5).")
        object.__setattr__(self, "fsq_levels", tuple(self.fsq_levels))
        for levels in self.fsq_levels:
            check_count("fsq_levels", levels, at_least=3, remedy="Use 5 or 8, or `bottleneck: lfq` for two values.")
        check_weight("lfq_entropy_weight", self.lfq_entropy_weight)
        check_weight("lfq_commitment_weight", self.lfq_commitment_weight)
        if self.bottleneck == "gaussian":
            return
        if self.codebook_size > LARGEST_CODEBOOK:
            got = f"one of {self.codebook_size}"
            raise argument_error("fsq_levels", f"those of a codebook of at most {LARGEST_CODEBOOK}", got, "Use less.")
        if self.latent_channels % self.code_channels:
            name = "fsq_levels" if self.bottleneck == "fsq" else "lfq_bits"
            contract = f"a multiple of the {self.code_channels} channels of a code, see `{name}`"
            remedy = f"Use {self.code_channels * ceil_div(self.latent_channels, self.code_channels)}."
            raise argument_error("latent_channels", contract, self.latent_channels, remedy)

    @property
    def code_channels(self) -> int:
        """Channels of a code of a discrete bottleneck."""
        return len(self.fsq_levels) if self.bottleneck == "fsq" else self.lfq_bits

    @property
    def codebook_size(self) -> int:
        """Number of codes of a discrete bottleneck."""
        return math.prod(self.fsq_levels) if self.bottleneck == "fsq" else 2**self.lfq_bits

    @property
    def channels(self) -> list[int]:
        """Channels of each level, the highest resolution first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def folded_channels(self) -> int:
        """Values of a patch: the channels before the first layer and after the last."""
        return 3 * self.time_compression * self.patch_size**2

    def halvings(self) -> Iterator[tuple[int, int]]:
        """Yield the channels before and after each halving of height and width, the highest resolution first."""
        return itertools.pairwise(self.channels)


def check_power_of_two(name: str, value: object) -> None:
    """Raise a `ValueError` unless `value` is 1, 2, 4, 8, ... 256."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 256 or value & (value - 1):
        raise argument_error(name, "a power of two up to 256", describe(value), "Use for example 1, 2, 4 or 8.")
