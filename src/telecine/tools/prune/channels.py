"""Which entries of which weights belong to a channel, found by the shapes of the model in other widths.

Example: a residual block of 8 channels has 4 inner ones, between its two convolutions. The inner channels are a
`ChannelGroup`, and each weight that has them is a `ChannelAxis` of it. With `num_slices=4`, inner channel 2 is

    conv1.weight[2]      of shape (4, 8, 3, 3, 3), dim 0: the kernel that makes it
    conv1.bias[2]        of shape (4,),            dim 0
    norm2.gamma[2]       of shape (4, 1, 1, 1),    dim 0
    conv2.weight[:, 2]   of shape (8, 4, 3, 3, 3), dim 1: the kernels that read it

To keep slices 0 and 2 is to keep the entries [0, 2] of these axes: `conv1.weight` becomes (2, 8, 3, 3, 3) and
`conv2.weight` (8, 2, 3, 3, 3). An axis may have several entries of a slice:

- A layer before a shuffle of 2 x 2 pixels has 16 outputs: slice 2 is its entries [8, 9, 10, 11].
- A layer that makes queries, keys and values has 12 outputs, 3 sets of all channels (`num_sets=3`): slice 2 is its
  entries [2, 6, 10].
- A slice may be several channels: with `num_slices=2`, slice 1 of `conv1.weight` is its entries [2, 3].
- A group norm of 2 groups has channels (0, 1) and (2, 3) in its groups. If it keeps its 2 groups (`num_norm_groups=2`),
  as many slices stay in each: [0, 2] is possible, [0, 1] is not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """A dimension of a weight that has the channels of a group."""

    weight: str
    """Its name in the state dict."""
    dim: int
    num_sets: int = 1
    """How many times it has all channels."""

    def indices(self, size: int, num_slices: int, kept: Tensor) -> Tensor:
        """Return the entries of the kept slices, in order.

        Args:
            size: Entries of the axis.
            num_slices: Slices of the group.
            kept: The kept slices, `(K,)`, ascending.
        """
        entries = torch.arange(size).view(self.num_sets, num_slices, -1)
        return entries[:, kept].flatten()

    def by_slice(self, values: Tensor, num_slices: int) -> Tensor:
        """Return values along the axis `(size,)` summed over the entries of each slice, `(num_slices,)`."""
        return values.view(self.num_sets, num_slices, -1).sum((0, 2))


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
    stage_group_index: int
    """The index of its stages in `Widths.stage_groups`."""


def find_groups(
    build: Build, config: Configuration, widths: Widths, weights: Mapping[str, Tensor]
) -> list[ChannelGroup]:
    """Return all groups of channels of the part of a model that `widths` describes.

    The model is built without memory, with several times the channels of one stage after the other: an axis of a weight
    that becomes longer has channels of this stage. Neighbouring stages with the same number of channels have one
    residual stream, which is one group. The inner channels of each residual block are groups, see `Widths.inner`.

    Args:
        build: Makes the model of a configuration.
        config: The configuration of the model.
        widths: Where it states the channels.
        weights: The state dict of the model.

    Raises:
        ValueError: The shapes of the class do not follow its configuration.
    """
    collected: dict[str, _CollectedGroup] = {}
    seen: set[tuple[str, int]] = set()
    for index, stage_group in enumerate(widths.stage_groups(config)):
        wider_config, factor = widths.with_wider_stages(config, stage_group.indices)
        wider = build_on_meta(build, wider_config)
        for weight, dim in _longer_axes(weights, wider, factor):
            if not weight.startswith(widths.prefix):
                continue
            if (weight, dim) in seen:
                raise _unclear(f"{weight}, whose dimension {dim} has channels of two stages")
            seen.add((weight, dim))
            axis = ChannelAxis(weight, dim, _num_sets(weight, dim, widths))
            size = weights[weight].shape[dim] // axis.num_sets
            inner_name = _name_of_inner(weight, dim, widths)
            if inner_name is not None:
                group = collected.setdefault(inner_name, _CollectedGroup(is_inner=True))
            elif stage_group.by_size:
                group = collected.setdefault(f"{size} channels", _CollectedGroup())
            else:
                whole_stages = _CollectedGroup(num_channels=stage_group.num_channels)
                group = collected.setdefault(stage_group.name, whole_stages)
            group.axes.append(axis)
            group.num_channels = math.gcd(group.num_channels, size)
            group.stage_group_index = index
    groups = []
    for name, group in sorted(collected.items(), key=lambda item: item[1].is_inner):
        slices = widths.slices(config, group.num_channels)
        groups.append(
            ChannelGroup(
                name,
                num_channels=group.num_channels,
                num_slices=slices.num_slices,
                num_norm_groups=slices.num_norm_groups,
                axes=tuple(group.axes),
                stage_group_index=group.stage_group_index,
            )
        )
    return groups


@dataclass
class _CollectedGroup:
    """A group whose axes are still collected."""

    is_inner: bool = False
    """Whether it has inner channels of a residual block. These groups come last."""
    num_channels: int = 0
    """The largest number that divides those of all its axes, and of its stages."""
    axes: list[ChannelAxis] = field(default_factory=list)
    stage_group_index: int = 0


def share_denominators(groups: Sequence[ChannelGroup]) -> list[int]:
    """Return, for each of `Widths.stage_groups`, the denominator of the shares of its channels that can stay."""
    denominators: dict[int, int] = {}
    for group in groups:
        in_group = group.num_slices // group.num_norm_groups
        others = denominators.get(group.stage_group_index, 0)
        denominators[group.stage_group_index] = math.gcd(others, in_group)
    return [denominators[index] for index in sorted(denominators)]


def build_on_meta(build: Build, config: Configuration) -> nn.Module:
    """Return the model of a configuration, whose weights need no memory."""
    with init_empty_weights():
        return build(config)


def _longer_axes(
    weights: Mapping[str, Tensor], wider: nn.Module, factor: int
) -> list[tuple[str, int]]:
    """Return the axes of weights that are `factor` times as long in a wider model."""
    wider_weights = wider.state_dict()
    if wider_weights.keys() != weights.keys():
        names = sorted(wider_weights.keys() ^ weights.keys())
        raise _unclear(f"{names[0]}, which only some widths have")
    axes = []
    for name, tensor in weights.items():
        for axis, (size, wider_size) in enumerate(
            zip(tensor.shape, wider_weights[name].shape, strict=True)
        ):
            if wider_size == factor * size:
                axes.append((name, axis))
            elif wider_size != size:
                raise _unclear(f"{name}, whose axis {axis} has {size} entries, then {wider_size}")
    return axes


def _num_sets(weight: str, dim: int, widths: Widths) -> int:
    if dim > 0:
        return 1
    for layer, number in widths.channel_sets.items():
        if f".{layer}." in f".{weight}":
            return number
    return 1


def _name_of_inner(weight: str, dim: int, widths: Widths) -> str | None:
    """Return the name of the inner channels of a residual block that an axis has, or None."""
    for inner in widths.inner:
        layers = inner.outputs if dim == 0 else inner.inputs
        for layer in layers:
            block, separator, _ = f".{weight}".partition(f".{layer}.")
            if separator:
                return f"{block}.{inner.name}".strip(".")
    return None


def _unclear(got: str) -> Exception:
    contract = "a model whose weights have the channels that its configuration states"
    remedy = "`telecine distill` trains a small decoder for the latents of any model."
    return argument_error("model", contract, got, remedy)
