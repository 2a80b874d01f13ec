"""Where the configuration of each class states the channels of its networks, and which sizes it can state."""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from typing import Any, Literal, TypeAlias

from telecine.base.checks import argument_error
from telecine.models.diffusers.families import class_names
from telecine.settings.autoencoder import ConvolutionKind

Part: TypeAlias = Literal["decoder", "both"]
Configuration: TypeAlias = Mapping[str, Any]
Grouping: TypeAlias = Literal["stage", "size", "all"]
"""Which channels are one group.

- "stage": those of neighbouring stages that have the same number of channels.
- "size": those of all layers that have the same number of channels, since a stage outputs as many as the next one has.
- "all": those of all stages. Shortcuts without weights copy or average the channels of a stage into those of the next,
  or the channels of other layers follow from those of two stages.
"""


def _tied_if_residual(config: Configuration) -> Grouping:
    return "all" if config["is_residual"] else "size"


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
    norm_groups: int = 1
    """The number of groups of each group norm, if no setting has it; 1 without group norms."""
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

    def slices_and_norm_groups(self, config: Configuration, num_channels: int) -> tuple[int, int]:
        """Return `num_slices` and `num_norm_groups` of a `ChannelGroup` with a number of channels."""
        if self.norm_groups_setting is None:
            return num_channels, math.gcd(num_channels, self.norm_groups)
        num_groups = config[self.norm_groups_setting]
        if self.needs_equal_shares:  # a slice is a group of the norms
            return num_groups, 1
        return num_channels, num_groups

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


_SETS = {"time_conv": 2, "to_qkv": 3}
QUERIES = ("to_q", "to_qkv", "q")
"""Layers that make the queries of an attention with one head of all channels, in their first set of outputs."""
_BLOCKS = "block_out_channels"
_DECODER_BLOCKS = "decoder_block_out_channels"
_SHARED = Widths(
    _BLOCKS,
    part="both",
    norm_groups_setting="norm_num_groups",
    blocks_setting="layers_per_block",
)


CAUSAL_VAE_WIDTHS = Widths(
    "base_channels",
    multipliers="channel_multipliers",
    grouping="all",
    channel_sets={"modulation": 2},
    blocks_setting="blocks_per_level",
)
"""Of the encoder and the decoder of `CausalVAE`, and of the decoder of a student; without `inner`, see below."""


def inner_channels_of_block(block: str, kind: ConvolutionKind) -> list[InnerChannels]:
    """Return the inner channels of a residual block of `CausalVAE`.

    Args:
        block: Its name in the network.
        kind: That of its convolutions, see `residual_convolution`.
    """
    first = f"{block}.branch.2"
    norm = f"{block}.branch.3"
    second = f"{block}.branch.5"
    if kind == "depthwise":
        # The first layer of each pair has a kernel for each channel of its input, and outputs the same channels.
        return [InnerChannels(block, (f"{first}.1", norm, f"{second}.0"), (f"{second}.1",))]
    if kind == "2+1d":
        # The second convolution has no earlier frames, and stays a single layer.
        between = InnerChannels(block, (f"{first}.1", norm), (second,))
        return [between, InnerChannels(first, (f"{first}.0",), (f"{first}.1",))]
    return [InnerChannels(block, (first, norm), (second,))]


WIDTHS = {
    "AsymmetricAutoencoderKL": Widths(
        "up_block_out_channels",
        prefix="decoder.",
        norm_groups_setting="norm_num_groups",
        grouping="all",  # its encoder of masks has channels of the first stage, doubled up to those of the last one
        blocks_setting="layers_per_up_block",
    ),
    "AutoencoderKL": _SHARED,
    "AutoencoderKLAllegro": Widths(
        _BLOCKS,
        part="both",
        norm_groups_setting="norm_num_groups",
        channel_sets={"temp_conv_up.conv1.2": 2},
        inner=(),
        blocks_setting="layers_per_block",
    ),
    "AutoencoderKLCogVideoX": _SHARED,
    "AutoencoderKLCosmos": Widths("decode_block_out_channels", prefix="decoder."),
    "AutoencoderKLFlux2": Widths(
        _DECODER_BLOCKS,
        fallback="block_out_channels",
        prefix="decoder.",
        norm_groups_setting="norm_num_groups",
    ),
    "AutoencoderKLHunyuanVideo": _SHARED,
    "AutoencoderKLKVAE": Widths(
        "channels",
        multipliers="ch_mult",
        part="both",
        grouping="size",
        norm_groups=32,
        inner=(),
    ),
    "AutoencoderKLKVAEVideo": Widths(
        "ch",
        multipliers="ch_mult",
        part="both",
        grouping="size",
        norm_groups=32,
        inner=(),
        blocks_setting="num_res_blocks",
    ),
    "AutoencoderKLLTXVideo": Widths(
        _DECODER_BLOCKS,
        prefix="decoder.",
        grouping="all",
        mixing_shortcuts="upsample_residual",
        channel_sets={
            "decoder.time_embedder.timestep_embedder.linear_2": 2,
            "timestep_embedder.linear_2": 4,
        },
        inner=(),
        blocks_setting="decoder_layers_per_block",
    ),
    "AutoencoderKLMagvit": _SHARED,
    "AutoencoderKLMochi": Widths(_DECODER_BLOCKS, prefix="decoder.", norm_groups=32),
    "AutoencoderKLQwenImage": Widths(
        "base_dim",
        multipliers="dim_mult",
        part="both",
        grouping="size",
        channel_sets=_SETS,
        blocks_setting="num_res_blocks",
    ),
    "AutoencoderKLQwenImage21": Widths(
        "decoder_base_dim",
        multipliers="dim_mult",
        prefix="decoder.",
        grouping=_tied_if_residual,
        channel_sets=_SETS,
    ),
    "AutoencoderKLTemporalDecoder": Widths(
        _BLOCKS,
        part="both",
        norm_groups=32,
        inner=(),
        blocks_setting="layers_per_block",
    ),
    "AutoencoderKLWan": Widths(
        "decoder_base_dim",
        multipliers="dim_mult",
        fallback="base_dim",
        prefix="decoder.",
        grouping=_tied_if_residual,
        channel_sets=_SETS,
    ),
    "AutoencoderTiny": Widths(
        _DECODER_BLOCKS,
        prefix="decoder.",
        blocks_setting="num_decoder_blocks",
    ),
    "AutoencoderVidTok": Widths(
        "ch",
        multipliers="ch_mult",
        part="both",
        grouping="size",
        inner=(),
        blocks_setting="num_res_blocks",
    ),
    "Kandinsky6SRVAE": Widths(_DECODER_BLOCKS, prefix="decoder."),
    "VQModel": _SHARED,
}
"""The classes of diffusers that are pruned."""
_MIXES = "whose shortcuts between stages mix channels"
NOT_PRUNED = {
    "AutoencoderDC": "whose attention has heads that several weights share",
    "AutoencoderKLHunyuanImage": _MIXES,
    "AutoencoderKLHunyuanImageRefiner": _MIXES,
    "AutoencoderKLHunyuanVideo15": _MIXES,
    "AutoencoderKLLTX2Video": _MIXES,
    "AutoencoderKLMiniMaxH3": "whose decoder is a transformer",
    "AutoencoderRAE": "whose decoder is a transformer",
}
"""Classes that are not pruned, with the reason."""


def widths_of(cls: type, config: Configuration) -> Widths:
    """Return where the configuration of a model of diffusers states its channels.

    Raises:
        ValueError: Its channels cannot be removed, or telecine does not know where they are stated.
    """
    names = class_names(cls)
    widths = next((WIDTHS[name] for name in names if name in WIDTHS), None)
    contract = f"a CausalVAE, a student, or one of {', '.join(WIDTHS)}"
    remedy = "`telecine distill` trains a small decoder for the latents of any model."
    if widths is None:
        got = names[0]
        if got in NOT_PRUNED:
            got += f", {NOT_PRUNED[got]}"
        raise argument_error("model", contract, got, remedy)
    if widths.mixing_shortcuts is not None and any(config[widths.mixing_shortcuts]):
        raise argument_error("model", contract, f"{names[0]}, {_MIXES}", remedy)
    return widths
