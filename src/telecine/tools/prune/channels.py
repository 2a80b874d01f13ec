"""Which entries of which weights belong to a channel, found by the shapes of the model in other widths."""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.tools.prune.widths import Configuration, Widths

Build: TypeAlias = Callable[[Configuration], nn.Module]
"""From a configuration to a model with random weights."""


@dataclass(frozen=True)
class Axis:
    """An axis of a weight that has channels of a group.

    Its index is `(outer * num_units + unit) * inner + rest`: each unit has `inner` neighbouring entries in each of
    `num_outer` blocks.
    """

    weight: str
    axis: int
    num_outer: int = 1

    def indices(self, size: int, num_units: int, kept: Tensor) -> Tensor:
        """Return the entries of the kept units, in order.

        Args:
            size: Entries of the axis.
            num_units: Units of the group.
            kept: The kept units, `(K,)`, ascending.
        """
        entries = torch.arange(size).view(self.num_outer, num_units, -1)
        return entries[:, kept].flatten()

    def by_unit(self, values: Tensor, num_units: int) -> Tensor:
        """Return values along the axis `(size,)` summed over the entries of each unit, `(num_units,)`."""
        return values.view(self.num_outer, num_units, -1).sum((0, 2))


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that have to be kept or removed together, in all weights that have them."""

    name: str
    num_channels: int
    num_units: int
    """Into how many equal parts the channels are cut, of which each is kept whole."""
    num_bands: int
    """The units are cut into as many bands, and each band keeps the same number: those of fixed group norms."""
    axes: tuple[Axis, ...]


def find_groups(
    build: Build, config: Configuration, widths: Widths, weights: Mapping[str, Tensor]
) -> list[ChannelGroup]:
    """Return all groups of channels of the part of a model that `widths` describes.

    The model is built without memory, with twice the channels of one stage after the other: an axis of a weight that
    becomes longer has channels of this stage. Neighbouring stages with the same number of channels have one residual
    stream, and so one group. The hidden channels of each residual block are a group.

    Args:
        build: Makes the model of a configuration.
        config: The configuration of the model.
        widths: Where it states the channels.
        weights: The state dict of the model.

    Raises:
        ValueError: The shapes of the class do not follow its configuration.
    """
    hidden: dict[str, list[Axis]] = {}
    streams: dict[str, list[Axis]] = {}
    num_channels: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for stages in _stages_to_widen(config, widths):
        wider = build_on_meta(build, widths.with_stages_doubled(config, stages.indices))
        for weight, axis in _longer_axes(weights, wider):
            if not weight.startswith(widths.prefix):
                continue
            if (weight, axis) in seen:
                raise _unclear(f"{weight}, whose axis {axis} has channels of two stages")
            seen.add((weight, axis))
            place = Axis(weight, axis, _num_outer(weight, axis, widths))
            size = weights[weight].shape[axis] // place.num_outer
            block = _block_of_hidden(weight, axis, widths)
            if block is not None:
                hidden.setdefault(block, []).append(place)
                num_channels[block] = size
            elif stages.by_size:
                name = f"{size} channels"
                streams.setdefault(name, []).append(place)
                num_channels[name] = size
            else:
                streams.setdefault(stages.name, []).append(place)
                common = num_channels.get(stages.name, stages.num_channels)
                num_channels[stages.name] = math.gcd(common, size)
    groups = []
    for name, axes in (streams | hidden).items():
        num_units, num_bands = widths.units(config, num_channels[name])
        groups.append(ChannelGroup(name, num_channels[name], num_units, num_bands, tuple(axes)))
    return groups


def num_parts_of(groups: Sequence[ChannelGroup]) -> int:
    """Return into how many equal parts all channels are cut, of which a pruned model keeps some."""
    return math.gcd(*(group.num_units // group.num_bands for group in groups))


def build_on_meta(build: Build, config: Configuration) -> nn.Module:
    """Return the model of a configuration, whose weights need no memory."""
    with init_empty_weights():
        return build(config)


@dataclass(frozen=True)
class _Stages:
    """Stages that are widened together."""

    name: str
    indices: Container[int]
    num_channels: int
    """Channels that all of them have."""
    by_size: bool = False
    """Whether each number of channels has a group of its own."""


def _stages_to_widen(config: Configuration, widths: Widths) -> list[_Stages]:
    channels = widths.of_stages(config)
    everything = range(len(channels))
    grouping = widths.grouping_of(config)
    if grouping != "stage":
        return [_Stages("all stages", everything, math.gcd(*channels), by_size=grouping == "size")]
    stages = []
    for number, run in groupby(everything, key=channels.__getitem__):
        indices = list(run)
        name = "stage " + ", ".join(str(index) for index in indices)
        stages.append(_Stages(name, indices, number))
    return stages


def _longer_axes(weights: Mapping[str, Tensor], wider: nn.Module) -> list[tuple[str, int]]:
    """Return the axes of weights that are longer in a wider model."""
    wider_weights = wider.state_dict()
    if wider_weights.keys() != weights.keys():
        names = sorted(wider_weights.keys() ^ weights.keys())
        raise _unclear(f"{names[0]}, which only some widths have")
    axes = []
    for name, tensor in weights.items():
        for axis, (size, wider_size) in enumerate(
            zip(tensor.shape, wider_weights[name].shape, strict=True)
        ):
            if wider_size == 2 * size:
                axes.append((name, axis))
            elif wider_size != size:
                raise _unclear(f"{name}, whose axis {axis} has {size} entries, then {wider_size}")
    return axes


def _num_outer(weight: str, axis: int, widths: Widths) -> int:
    if axis > 0:
        return 1
    for layer, number in widths.outer.items():
        if f".{layer}." in f".{weight}":
            return number
    return 1


def _block_of_hidden(weight: str, axis: int, widths: Widths) -> str | None:
    """Return the residual block whose hidden channels an axis has, or None."""
    if widths.hidden is None:
        return None
    maker, norm, reader = widths.hidden
    for layer, layer_axis in ((maker, 0), (norm, 0), (reader, 1)):
        block, separator, _ = f".{weight}".partition(f".{layer}.")
        if separator and axis == layer_axis:
            return block.removeprefix(".")
    return None


def _unclear(got: str) -> Exception:
    contract = "a model whose weights have the channels that its configuration states"
    remedy = "`telecine distill` trains a small decoder for the latents of any model."
    return argument_error("model", contract, got, remedy)
