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
class ChannelAxis:
    """A dimension of a weight that has the channels of a group.

    The channels are cut into slices, of which each is kept or removed. Slices are neighbouring entries: with 4 channels
    in 2 slices, an output of 4 has slices (0, 1) and (2, 3). Before a shuffle of 2 x 2 pixels it has 16 entries, and
    slices of 8. A layer that makes queries, keys and values has 12, in 3 blocks: slices (0, 1, 4, 5, 8, 9) and
    (2, 3, 6, 7, 10, 11).
    """

    weight: str
    """Its name in the state dict."""
    dim: int
    num_blocks: int = 1

    def indices(self, size: int, num_slices: int, kept: Tensor) -> Tensor:
        """Return the entries of the kept slices, in order.

        Args:
            size: Entries of the axis.
            num_slices: Slices of the group.
            kept: The kept slices, `(K,)`, ascending.
        """
        entries = torch.arange(size).view(self.num_blocks, num_slices, -1)
        return entries[:, kept].flatten()

    def by_slice(self, values: Tensor, num_slices: int) -> Tensor:
        """Return values along the axis `(size,)` summed over the entries of each slice, `(num_slices,)`."""
        return values.view(self.num_blocks, num_slices, -1).sum((0, 2))


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that have to be kept or removed together, in all weights that have them."""

    name: str
    num_channels: int
    num_slices: int
    """Into how many equal slices the channels are cut."""
    num_norm_groups: int
    """The groups of the group norms that keep their number: each keeps the same number of slices. Else 1."""
    axes: tuple[ChannelAxis, ...]


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
    hidden: dict[str, list[ChannelAxis]] = {}
    streams: dict[str, list[ChannelAxis]] = {}
    num_channels: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for stages in _stages_to_widen(config, widths):
        wider = build_on_meta(build, widths.with_stages_doubled(config, stages.indices))
        for weight, dim in _longer_axes(weights, wider):
            if not weight.startswith(widths.prefix):
                continue
            if (weight, dim) in seen:
                raise _unclear(f"{weight}, whose dimension {dim} has channels of two stages")
            seen.add((weight, dim))
            axis = ChannelAxis(weight, dim, _num_blocks(weight, dim, widths))
            size = weights[weight].shape[dim] // axis.num_blocks
            block = _block_of_hidden(weight, dim, widths)
            if block is not None:
                hidden.setdefault(block, []).append(axis)
                num_channels[block] = size
            elif stages.by_size:
                name = f"{size} channels"
                streams.setdefault(name, []).append(axis)
                num_channels[name] = size
            else:
                streams.setdefault(stages.name, []).append(axis)
                common = num_channels.get(stages.name, stages.num_channels)
                num_channels[stages.name] = math.gcd(common, size)
    groups = []
    for name, axes in (streams | hidden).items():
        num_slices, num_norm_groups = widths.slices(config, num_channels[name])
        groups.append(
            ChannelGroup(name, num_channels[name], num_slices, num_norm_groups, tuple(axes))
        )
    return groups


def num_parts_of(groups: Sequence[ChannelGroup]) -> int:
    """Return into how many equal parts all channels are cut, of which a pruned model keeps some."""
    return math.gcd(*(group.num_slices // group.num_norm_groups for group in groups))


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


def _num_blocks(weight: str, axis: int, widths: Widths) -> int:
    if axis > 0:
        return 1
    for layer, number in widths.blocks.items():
        if f".{layer}." in f".{weight}":
            return number
    return 1


def _block_of_hidden(weight: str, axis: int, widths: Widths) -> str | None:
    """Return the residual block whose hidden channels an axis has, or None."""
    if widths.hidden is None:
        return None
    producer, norm, consumer = widths.hidden
    for layer, layer_axis in ((producer, 0), (norm, 0), (consumer, 1)):
        block, separator, _ = f".{weight}".partition(f".{layer}.")
        if separator and axis == layer_axis:
            return block.removeprefix(".")
    return None


def _unclear(got: str) -> Exception:
    contract = "a model whose weights have the channels that its configuration states"
    remedy = "`telecine distill` trains a small decoder for the latents of any model."
    return argument_error("model", contract, got, remedy)
