"""A model with some of the channels of another one, and its weights."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from telecine.tools.prune.channels import ChannelGroup

_QUERIES = ("to_q", "to_qkv", "q")
"""Layers that make the queries of an attention with one head of all channels, in their first set of outputs."""
MeanSquares = Mapping[str, Tensor]
"""For each norm without a mean, by name: the mean square of each channel of its input, `(C,)`."""


def kept_slices(group: ChannelGroup, importance: Tensor, share: Fraction) -> Tensor:
    """Return the most important slices of a group, ascending.

    Args:
        group: The group.
        importance: That of each slice, `(num_slices,)`.
        share: How many of the slices are kept, for each group of the norms.
    """
    by_norm_group = importance.view(group.num_norm_groups, -1)
    num_in_group = int(by_norm_group.shape[1] * share)
    in_group = by_norm_group.topk(num_in_group, dim=1).indices
    first_of_group = torch.arange(group.num_norm_groups)[:, None] * by_norm_group.shape[1]
    return (in_group + first_of_group).flatten().sort().values


def kept_outputs(
    groups: Sequence[ChannelGroup], kept: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, list[int]]:
    """Return, for each convolution of the decoder by name, which of its outputs a pruned model has.

    Args:
        groups: All groups of channels.
        kept: The kept slices of each group, by its name.
        weights: The state dict of the network with all channels.
    """
    outputs = {}
    for group in groups:
        for axis in group.axes:
            layer, _, parameter = axis.weight.rpartition(".")
            tensor = weights[axis.weight]
            if parameter == "weight" and axis.dim == 0 and tensor.ndim >= 4:
                entries = axis.indices(len(tensor), group.num_slices, kept[group.name])
                outputs[layer.removeprefix("decoder.")] = entries.tolist()
    return outputs


def is_norm_gain(weight: str, squares: MeanSquares) -> bool:
    """Return whether a weight is the gain of a norm that divides by the root mean square of its channels."""
    layer, _, parameter = weight.rpartition(".")
    return layer in squares and parameter in ("gamma", "scale")


def gain_with_zeros(weight: str, kept: Tensor, squares: MeanSquares) -> float:
    """Return the factor of a norm's gain if removed channels are 0 and count in the mean: `sqrt(kept / total)`.

    `kept` and `total` are sums of mean squares over the kept and over all channels. With the factor, kept channels are
    normalised as they were before the others became 0.

    Args:
        weight: The name of the gain, see `is_norm_gain`.
        kept: The kept channels.
        squares: Those of the input of norms. The factor is 1 if they are all 0.
    """
    values = squares[weight.rpartition(".")[0]]
    total = values.sum()
    if total == 0:
        return 1.0
    return math.sqrt(values[kept].sum() / total)


def gain_without(weight: str, kept: Tensor, squares: MeanSquares) -> float:
    """Return the factor of a norm's gain if removed channels are no longer in the mean.

    It is `gain_with_zeros` times `sqrt(C / K)`: the mean is over K instead of C channels.

    Args:
        weight: The name of the gain, see `is_norm_gain`.
        kept: The kept channels.
        squares: Those of the input of norms.
    """
    num_channels = len(squares[weight.rpartition(".")[0]])
    return math.sqrt(num_channels / len(kept)) * gain_with_zeros(weight, kept, squares)


def pruned_weights(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    kept: Mapping[str, Tensor],
    squares: MeanSquares,
) -> dict[str, Tensor]:
    """Return the weights of a network that has only the kept channels.

    Removed channels no longer count in the root mean square that a norm divides by. The norm's gain is therefore scaled
    by the share that the kept channels have of it, so that they are normalised as before. Queries are scaled for an
    attention with smaller heads. If all removed channels are 0, the output stays the same, except after group norms
    that keep their number of groups.

    Args:
        network: The network with all channels, whose weights stay.
        groups: All groups of its channels.
        kept: The kept slices of each group, by its name.
        squares: Those of the input of norms, see `recorded_squares`.
    """
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for group in groups:
        for axis in group.axes:
            if axis.dim > 0:
                continue
            tensor = weights[axis.weight]
            entries = axis.indices(len(tensor), group.num_slices, kept[group.name])
            if is_norm_gain(axis.weight, squares):
                tensor *= gain_without(axis.weight, entries, squares)
            layer = axis.weight.rpartition(".")[0]
            if layer.rpartition(".")[2] in _QUERIES:
                num_queries = len(tensor) // axis.num_sets
                num_kept = len(entries) // axis.num_sets
                tensor[:num_queries] *= math.sqrt(num_kept / num_queries)
    for group in groups:
        for axis in group.axes:
            tensor = weights[axis.weight]
            entries = axis.indices(tensor.shape[axis.dim], group.num_slices, kept[group.name])
            weights[axis.weight] = tensor.index_select(axis.dim, entries.to(tensor.device))
    return weights
