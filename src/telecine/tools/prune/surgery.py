"""A model with some of the channels of another one, and its weights."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from telecine.tools.prune.channels import ChannelGroup
from telecine.tools.prune.widths import QUERIES

Energy = Mapping[str, Tensor]
"""For each norm without a mean, by name: the mean square of each channel of its input, `(C,)`."""


def kept_units(group: ChannelGroup, importance: Tensor, num_kept: int, num_parts: int) -> Tensor:
    """Return the most important units of a group, ascending.

    Args:
        group: The group.
        importance: That of each unit, `(num_units,)`.
        num_kept: How many of `num_parts` equal parts are kept.
        num_parts: See `num_kept`.
    """
    by_band = importance.view(group.num_bands, -1)
    num_in_band = by_band.shape[1] * num_kept // num_parts
    in_band = by_band.topk(num_in_band, dim=1).indices
    first_of_band = torch.arange(group.num_bands)[:, None] * by_band.shape[1]
    return (in_band + first_of_band).flatten().sort().values


def pruned_weights(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    kept: Mapping[str, Tensor],
    energy: Energy,
) -> dict[str, Tensor]:
    """Return the weights of a network that has only the kept channels.

    Where a norm divides by the root mean square of its channels, its gain is scaled by what the removed ones had of
    it, so that the kept ones stay as large as they were. Queries are scaled for an attention with smaller heads.
    If all that is removed is 0, the output does not change, but for group norms with fewer channels.

    Args:
        network: The network with all channels, whose weights stay.
        groups: All groups of its channels.
        kept: The kept units of each group, by its name.
        energy: The energy of the input of norms.
    """
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    gains: dict[str, float] = {}
    for group in groups:
        for place in group.axes:
            tensor = weights[place.weight]
            entries = place.indices(tensor.shape[place.axis], group.num_units, kept[group.name])
            layer, _, parameter = place.weight.rpartition(".")
            if layer in energy and parameter in ("gamma", "scale") and place.axis == 0:
                share = energy[layer][entries].sum() / energy[layer].sum()
                gains[place.weight] = math.sqrt(share * tensor.shape[0] / len(entries))
            makes_queries = layer.rpartition(".")[2] in QUERIES and place.axis == 0
            if makes_queries:
                num_queries = tensor.shape[0] // place.num_outer
                num_kept = len(entries) // place.num_outer
                tensor[:num_queries] *= math.sqrt(num_kept / num_queries)
            weights[place.weight] = tensor.index_select(place.axis, entries.to(tensor.device))
    for name, gain in gains.items():
        weights[name] *= gain
    return weights
