"""Where a configuration states the channels of a network, and which sizes it can state."""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeAlias

Part: TypeAlias = Literal["decoder", "both"]
Configuration: TypeAlias = Mapping[str, Any]
Grouping: TypeAlias = Literal["stage", "size", "all"]
"""Which channels are one group.

- "stage": those of neighbouring stages that have the same number of channels.
- "size": those of all layers that have the same number of channels, since a stage outputs as many as the next one has.
- "all": those of all stages. Shortcuts without weights copy or average the channels of a stage into those of the next,
  or the channels of other layers follow from those of two stages.
"""


@dataclass(frozen=True)
class StageGroup:
    """Stages of a network that keep the same share of their channels."""

    name: str
    indices: tuple[int, ...]
    """Their places in the configuration."""
    num_channels: int
    """Channels that all of them have."""
    by_size: bool = False
    """Whether each number of channels has a group of its own."""


class Slices(NamedTuple):
    """Into which parts the channels of a group are cut, see `ChannelGroup`."""

    num_slices: int
    num_norm_groups: int


@dataclass(frozen=True)
class InnerChannels:
    """Channels between layers of a residual block: no other layer has them.

    Layers are named as in the network, or by the end of their name in each block.
    """

    name: str
    """Name of the channels, after the name of the block if layers are named in each block."""
    outputs: tuple[str, ...]
    """Layers that output them, and their norms."""
    inputs: tuple[str, ...]
    """Layers that take them as their input."""


_BETWEEN_CONVOLUTIONS = InnerChannels("", outputs=("conv1", "norm2"), inputs=("conv2",))


@dataclass(frozen=True)
class Widths:
    """Where a configuration states how many channels a network has."""

    setting: str
    """The setting whose numbers are channels: one for each stage, or one that `multipliers` multiplies."""
    multipliers: str | None = None
    """The list with a multiplier for each stage; None if `setting` is a list."""
    part: Part = "decoder"
    """The part of the model that has these channels; "both" if the encoder has them as well."""
    fallback: str | None = None
    """The setting that is used where `setting` is None."""
    prefix: str = ""
    """Prefix of the weights that have these channels."""
    norm_groups: int | None = None
    """The number of groups of each group norm, if no setting has it; None without group norms."""
    norm_groups_setting: str | None = None
    """The setting with the number of groups of each group norm. If it is for the pruned part alone, whole groups are
    removed; else the number stays, and each group keeps the same share of its channels."""
    grouping: Grouping | Callable[[Configuration], Grouping] = "stage"
    """Which channels are kept or removed together; a function if it depends on the configuration."""
    mixing_shortcuts: str | None = None
    """The setting that adds shortcuts between stages that mix channels, so that no part of them can be removed."""
    channel_sets: Mapping[str, int] = field(default_factory=dict)
    """Names of layers that output all channels several times, such as queries, keys and values: how many times."""
    inner: tuple[InnerChannels, ...] = (_BETWEEN_CONVOLUTIONS,)
    """Channels inside of residual blocks that are removed by themselves; none if other layers take them, too."""
    blocks_setting: str | None = None
    """The setting with the number of residual blocks of each stage of `part`: a number, or one for each stage."""

    def stage_channels(self, config: Configuration) -> list[int]:
        """Return the channels of each stage."""
        value = self._value(config)
        if self.multipliers is None:
            return list(value)
        return [value * multiplier for multiplier in config[self.multipliers]]

    def stage_groups(self, config: Configuration) -> list[StageGroup]:
        """Return the stages whose channels are removed together, in the order of the configuration."""
        channels = self.stage_channels(config)
        indices = range(len(channels))
        grouping = self.grouping(config) if callable(self.grouping) else self.grouping
        if grouping != "stage":
            number = math.gcd(*channels)
            return [StageGroup("all stages", tuple(indices), number, by_size=grouping == "size")]
        groups = []
        for number, run in groupby(indices, key=channels.__getitem__):
            members = tuple(run)
            name = "stage " + ", ".join(str(index) for index in members)
            groups.append(StageGroup(name, members, number))
        return groups

    @property
    def needs_equal_shares(self) -> bool:
        """Whether all stages keep the same share, as whole groups of norms are removed and all norms have as many."""
        return self.norm_groups_setting is not None and self.part == "both"

    def with_wider_stages(
        self, config: Configuration, stages: Container[int]
    ) -> tuple[dict[str, Any], int]:
        """Return a configuration with more channels in some stages, counted from 0, and how many times as many.

        A stage does not get the number of channels of another one: a shortcut between two such stages has no weights.
        """
        value = self._value(config)
        if self.multipliers is not None:  # then the stages are grouped by their size
            return {**config, self.setting: 2 * value}, 2
        others = [number for stage, number in enumerate(value) if stage not in stages]
        factor = 2
        while any(
            factor * number in others for stage, number in enumerate(value) if stage in stages
        ):
            factor += 1
        wider = []
        for stage, number in enumerate(value):
            wider.append(factor * number if stage in stages else number)
        return {**config, self.setting: wider}, factor

    def slices(self, config: Configuration, num_channels: int) -> Slices:
        """Return into which parts a group with a number of channels is cut."""
        if self.norm_groups_setting is not None:
            num_groups = config[self.norm_groups_setting]
            if self.needs_equal_shares:
                # Whole groups of the norms are removed.
                return Slices(num_slices=num_groups, num_norm_groups=1)
            return Slices(num_channels, num_norm_groups=num_groups)
        if self.norm_groups is None:
            return Slices(num_channels, num_norm_groups=1)
        return Slices(num_channels, num_norm_groups=math.gcd(num_channels, self.norm_groups))

    def scaled(self, config: Configuration, shares: Sequence[Fraction]) -> dict[str, Any]:
        """Return a configuration with shares of the channels, one for each of `stage_groups`."""
        value = self._value(config)
        scaled: list[int] | int
        if self.multipliers is None:
            scaled = list(value)
            for group, share in zip(self.stage_groups(config), shares, strict=True):
                for index in group.indices:
                    scaled[index] = int(value[index] * share)
        else:
            scaled = int(value * shares[0])
        values = {**config, self.setting: scaled}
        if self.norm_groups_setting is not None and self.needs_equal_shares:
            num_groups = config[self.norm_groups_setting]
            values[self.norm_groups_setting] = int(num_groups * shares[0])
        return values

    def _value(self, config: Configuration) -> Any:
        value = config[self.setting]
        if value is None and self.fallback is not None:
            return config[self.fallback]
        return value
