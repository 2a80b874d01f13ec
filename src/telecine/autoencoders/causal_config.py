"""The settings of the causal autoencoder, and what each change of size looks like."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from telecine.shapes import argument_error


class Level(NamedTuple):
    """One change of size: channels before and after, and the factors in time and space."""

    outer: int
    inner: int
    time: int
    space: int


@dataclass(frozen=True)
class CausalVAEConfig:
    """Settings of `CausalVAE`; powers of two wherever something is divided.

    Raises:
        ValueError: a setting is out of its contract; the message names the setting and a value that works.
    """

    time_compression: int = 4
    """Frames per latent frame, a power of two; the first frame has a latent of its own, so 1 + 4k become 1 + k."""
    spatial_compression: int = 8
    """Pixels per latent position along height and width, a power of two."""
    latent_channels: int = 16
    """Channels of the latent: more keep more detail and compress less."""
    patch_size: int = 2
    """Side of the pixel blocks folded into channels before the first layer; larger is faster and coarser."""
    base_channels: int = 96
    """Channels at the outermost level."""
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    """Channels of each level in units of `base_channels`, powers of two, outermost first: one more than the number of
    halvings, which is the larger of log2(spatial_compression / patch_size) and log2(time_compression)."""
    blocks_per_level: int = 2
    """Residual blocks at each level, in the encoder and in the decoder."""
    time_kernel: int = 3
    """Frames that a residual block's first convolution sees, this one and earlier ones; 1 leaves motion to the layers
    between levels, at half the cost."""

    def __post_init__(self) -> None:
        if not isinstance(self.channel_multipliers, (list, tuple)):
            raise argument_error(
                "channel_multipliers", "a list of powers of two", self.channel_multipliers, "Use (1, 2)."
            )
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        for name in ("latent_channels", "base_channels", "blocks_per_level", "time_kernel"):
            check_setting(name, getattr(self, name), "a positive integer", is_count)
        for name in ("time_compression", "spatial_compression", "patch_size"):
            check_setting(name, getattr(self, name), "a power of two", is_power_of_two)
        for multiplier in self.channel_multipliers:
            check_setting("channel_multipliers", multiplier, "powers of two", is_power_of_two)
        self._check_levels()

    def _check_levels(self) -> None:
        if self.patch_size > self.spatial_compression:
            remedy = f"Use {self.spatial_compression} or less."
            raise argument_error("patch_size", "at most `spatial_compression`", self.patch_size, remedy)
        if len(self.channel_multipliers) != self.num_halvings + 1:
            remedy = f"For example {(*(2**i for i in range(self.num_halvings)), 2 ** max(self.num_halvings - 1, 0))}."
            contract = f"{self.num_halvings + 1} long for {self.num_halvings} halvings"
            raise argument_error("channel_multipliers", contract, self.channel_multipliers, remedy)
        for level in self.levels():
            self._check_shortcut(level)

    def _check_shortcut(self, level: Level) -> None:
        factor = level.time * level.space**2
        if level.inner > level.outer * factor or level.outer > level.inner * factor:
            remedy = f"This level folds {factor} positions into one, so channels may change {factor}-fold at most."
            raise argument_error("channel_multipliers", "of smaller steps", self.channel_multipliers, remedy)

    @property
    def num_halvings(self) -> int:
        """How many times the decoder doubles a size; time and space are doubled together where both remain."""
        return max(log2(self.spatial_compression // self.patch_size), log2(self.time_compression))

    def levels(self) -> Iterator[Level]:
        """Yield the changes of size, outermost first; time is compressed as early as space, which is cheapest."""
        space_steps, time_steps = log2(self.spatial_compression // self.patch_size), log2(self.time_compression)
        channels = [self.base_channels * multiplier for multiplier in self.channel_multipliers]
        for index, (outer, inner) in enumerate(itertools.pairwise(channels)):
            yield Level(outer, inner, time=2 if index < time_steps else 1, space=2 if index < space_steps else 1)


def is_count(value: Any) -> bool:
    """Say whether `value` is a positive integer; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_power_of_two(value: Any) -> bool:
    """Say whether `value` is 1, 2, 4, 8, ..."""
    return is_count(value) and value & (value - 1) == 0


def check_setting(name: str, value: Any, contract: str, holds: Callable[[Any], bool]) -> None:
    """Raise a `ValueError` unless `holds(value)`."""
    if not holds(value):
        raise argument_error(name, contract, value, "1, 2, 4 and 8 are.")


def log2(power_of_two: int) -> int:
    """Return the exponent of a power of two."""
    return power_of_two.bit_length() - 1
