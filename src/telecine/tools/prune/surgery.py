"""A model with some of the channels of another one, and its weights."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from telecine.tools.prune.channels import ChannelGroup
from telecine.tools.prune.widths import QUERIES

MeanSquares = Mapping[str, Tensor]
"""For each norm without a mean, by name: the mean square of each channel of its input, `(C,)`."""


def kept_slices(group: ChannelGroup, importance: Tensor, num_kept: int, num_parts: int) -> Tensor:
    """Return the most important slices of a group, ascending.

    Args:
        group: The group.
        importance: That of each slice, `(num_slices,)`.
        num_kept: How many of `num_parts` equal parts are kept.
        num_parts: See `num_kept`.
    """
    by_norm_group = importance.view(group.num_norm_groups, -1)
    num_in_group = by_norm_group.shape[1] * num_kept // num_parts
    in_group = by_norm_group.topk(num_in_group, dim=1).indices
    first_of_group = torch.arange(group.num_norm_groups)[:, None] * by_norm_group.shape[1]
    return (in_group + first_of_group).flatten().sort().values


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
    gains: dict[str, float] = {}
    for group in groups:
        for axis in group.axes:
            tensor = weights[axis.weight]
            entries = axis.indices(tensor.shape[axis.dim], group.num_slices, kept[group.name])
            layer, _, parameter = axis.weight.rpartition(".")
            if layer in squares and parameter in ("gamma", "scale") and axis.dim == 0:
                share = squares[layer][entries].sum() / squares[layer].sum()
                gains[axis.weight] = math.sqrt(share * tensor.shape[0] / len(entries))
            if layer.rpartition(".")[2] in QUERIES and axis.dim == 0:
                num_queries = tensor.shape[0] // axis.num_blocks
                num_kept = len(entries) // axis.num_blocks
                tensor[:num_queries] *= math.sqrt(num_kept / num_queries)
            weights[axis.weight] = tensor.index_select(axis.dim, entries.to(tensor.device))
    for name, gain in gains.items():
        weights[name] *= gain
    return weights
