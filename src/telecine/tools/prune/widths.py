"""Where the configuration of each class states the channels of its networks, and which sizes it can state."""

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from telecine.base.checks import argument_error
from telecine.models.diffusers.families import class_names

Part: TypeAlias = Literal["decoder", "both"]
Configuration: TypeAlias = Mapping[str, Any]
Grouping: TypeAlias = Literal["stage", "size", "all"]
"""Which channels are one group: those of neighbouring stages with the same number; all of the same number, where the
output of a stage has the number of the next one; or all, where shortcuts without weights copy or average the channels
of one stage in the next."""


def _tied_if_residual(config: Configuration) -> Grouping:
    return "all" if config["is_residual"] else "size"


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
    blocks: Mapping[str, int] = field(default_factory=dict)
    """Names of layers whose output is several blocks of all channels, such as queries, keys and values: the number of
    blocks."""
    hidden: tuple[str, str, str] | None = ("conv1", "norm2", "conv2")
    """Names, in a residual block, of the layer that outputs its hidden channels, their norm, and the layer that takes
    them as its input; None if other layers take them, too."""

    def of_stages(self, config: Configuration) -> list[int]:
        """Return the channels of each stage."""
        value = self._value(config)
        if self.multipliers is None:
            return list(value)
        return [value * multiplier for multiplier in config[self.multipliers]]

    def grouping_of(self, config: Configuration) -> Grouping:
        """Return `grouping` for a configuration."""
        return self.grouping(config) if callable(self.grouping) else self.grouping

    def with_stages_doubled(self, config: Configuration, stages: Container[int]) -> dict[str, Any]:
        """Return a configuration with twice the channels in some stages, counted from 0."""
        value = self._value(config)
        if self.multipliers is not None:  # then the stages are grouped by their size
            return {**config, self.setting: 2 * value}
        doubled = []
        for stage, number in enumerate(value):
            doubled.append(2 * number if stage in stages else number)
        return {**config, self.setting: doubled}

    def slices(self, config: Configuration, num_channels: int) -> tuple[int, int]:
        """Return `num_slices` and `num_norm_groups` of a `ChannelGroup` with a number of channels."""
        if self.norm_groups_setting is None:
            return num_channels, math.gcd(num_channels, self.norm_groups)
        num_groups = config[self.norm_groups_setting]
        if self.part == "both":  # whole groups are removed: a slice is a group
            return num_groups, 1
        return num_channels, num_groups

    def scaled(self, config: Configuration, num_kept: int, num_parts: int) -> dict[str, Any]:
        """Return a configuration with `num_kept / num_parts` of the channels."""
        value = self._value(config)
        scaled: list[int] | int
        if self.multipliers is None:
            scaled = [number * num_kept // num_parts for number in value]
        else:
            scaled = value * num_kept // num_parts
        values = {**config, self.setting: scaled}
        if self.norm_groups_setting is not None and self.part == "both":
            num_groups = config[self.norm_groups_setting]
            values[self.norm_groups_setting] = num_groups * num_kept // num_parts
        return values

    def _value(self, config: Configuration) -> Any:
        value = config[self.setting]
        if value is None and self.fallback is not None:
            return config[self.fallback]
        return value


_BLOCKS_OF_CHANNELS = {"time_conv": 2, "to_qkv": 3}
QUERIES = ("to_q", "to_qkv", "q")
"""Layers that make the queries of an attention with one head of all channels, in their first block of outputs."""
_BLOCKS = "block_out_channels"
_DECODER_BLOCKS = "decoder_block_out_channels"
_SHARED = Widths(_BLOCKS, part="both", norm_groups_setting="norm_num_groups")


OF_CAUSAL_VAE = Widths(
    "base_channels",
    multipliers="channel_multipliers",
    grouping="all",
    blocks={"modulation": 2},
    hidden=("branch.2", "branch.3", "branch.5"),
)
"""Of the encoder and the decoder of `CausalVAE`, and of the decoder of a student."""
WIDTHS = {
    "AsymmetricAutoencoderKL": Widths(
        "up_block_out_channels", prefix="decoder.", norm_groups_setting="norm_num_groups"
    ),
    "AutoencoderKL": _SHARED,
    "AutoencoderKLAllegro": Widths(
        _BLOCKS,
        part="both",
        norm_groups_setting="norm_num_groups",
        blocks={"temp_conv_up.conv1.2": 2},
        hidden=None,
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
        hidden=None,
    ),
    "AutoencoderKLKVAEVideo": Widths(
        "ch", multipliers="ch_mult", part="both", grouping="size", norm_groups=32, hidden=None
    ),
    "AutoencoderKLLTXVideo": Widths(
        _DECODER_BLOCKS,
        prefix="decoder.",
        grouping="all",
        mixing_shortcuts="upsample_residual",
        blocks={
            "decoder.time_embedder.timestep_embedder.linear_2": 2,
            "timestep_embedder.linear_2": 4,
        },
        hidden=None,
    ),
    "AutoencoderKLMagvit": _SHARED,
    "AutoencoderKLMochi": Widths(_DECODER_BLOCKS, prefix="decoder.", norm_groups=32),
    "AutoencoderKLQwenImage": Widths(
        "base_dim", multipliers="dim_mult", part="both", grouping="size", blocks=_BLOCKS_OF_CHANNELS
    ),
    "AutoencoderKLQwenImage21": Widths(
        "decoder_base_dim",
        multipliers="dim_mult",
        prefix="decoder.",
        grouping=_tied_if_residual,
        blocks=_BLOCKS_OF_CHANNELS,
    ),
    "AutoencoderKLTemporalDecoder": Widths(_BLOCKS, part="both", norm_groups=32, hidden=None),
    "AutoencoderKLWan": Widths(
        "decoder_base_dim",
        multipliers="dim_mult",
        fallback="base_dim",
        prefix="decoder.",
        grouping=_tied_if_residual,
        blocks=_BLOCKS_OF_CHANNELS,
    ),
    "AutoencoderTiny": Widths(_DECODER_BLOCKS, prefix="decoder."),
    "AutoencoderVidTok": Widths(
        "ch", multipliers="ch_mult", part="both", grouping="size", hidden=None
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
