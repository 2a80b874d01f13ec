"""How much each channel matters, by name."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from telecine.base.shapes import Video
from telecine.models import VideoAutoencoder
from telecine.models.causal_blocks import ChannelNorm
from telecine.models.diffusers.families import RMS_NORMS
from telecine.tools.prune.channels import ChannelGroup
from telecine.tools.prune.surgery import MeanSquares

_RMS_NORMS = {*RMS_NORMS, ChannelNorm.__name__, "Kandinsky6VAERMSNorm"}
"""Norms that divide by the root mean square of the channels, and then multiply by `gamma` or `scale`."""
Scores: TypeAlias = dict[str, Tensor]
"""For each group of channels, by name: the importance of each slice, `(num_slices,)`."""


def score_by_position(groups: Sequence[ChannelGroup]) -> Scores:
    """Return larger scores for earlier channels, whatever they do: the baseline of the others."""
    return {group.name: -torch.arange(group.num_slices, dtype=torch.float64) for group in groups}


def score_by_weight(network: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
    """Return the squared norm of all weights of each slice (arXiv:1608.08710 has the L1 norm of the filters)."""
    weights = network.state_dict()
    scores = {}
    for group in groups:
        score = torch.zeros(group.num_slices, dtype=torch.float64)
        for axis in group.axes:
            squares = weights[axis.weight].detach().double().square()
            score += axis.by_slice(_sum_over_others(squares, axis.dim), group.num_slices).cpu()
        scores[group.name] = score
    return scores


def measure(
    model: VideoAutoencoder,
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    videos: Iterable[Video],
    reconstruct: Callable[[Video], Video],
) -> tuple[Scores, MeanSquares]:
    """Return the importance of channels by activation times gradient, and the squares of the input of norms.

    To first order, removing a channel changes the loss by the sum of its activations times their gradients, which is
    that of the weights and biases that make it times theirs (equation 8 of arXiv:1906.10771). The score is the mean of
    its square over clips; the loss is the mean absolute error of the reconstruction.

    Args:
        model: The autoencoder. Its gradients are cleared.
        network: Its part that is pruned.
        groups: The groups of channels.
        videos: Clips `(1, C, T, H, W)` in [-1, 1].
        reconstruct: From a clip to its reconstruction, with a graph.
    """
    scores = {group.name: torch.zeros(group.num_slices, dtype=torch.float64) for group in groups}
    model.zero_grad(set_to_none=True)
    with recorded_squares(network) as squares:
        for video in videos:
            (reconstruct(video) - video).abs().mean().backward()
            parameters = dict(network.named_parameters())
            for group in groups:
                scores[group.name] += _squared_effects(group, parameters)
            model.zero_grad(set_to_none=True)
    return scores, squares


def _squared_effects(group: ChannelGroup, parameters: dict[str, nn.Parameter]) -> Tensor:
    """Return the squares of activation times gradient, summed over the layers that make a group's channels."""
    effects: dict[str, Tensor] = {}  # of weight and bias of a layer
    for axis in group.axes:
        parameter = parameters.get(axis.weight)
        if axis.dim > 0 or parameter is None or parameter.grad is None:
            continue
        layer = axis.weight.rpartition(".")[0]
        product = _sum_over_others((parameter * parameter.grad).detach().double(), 0)
        effect = axis.by_slice(product, group.num_slices).cpu()
        effects[layer] = effects[layer] + effect if layer in effects else effect
    total = torch.zeros(group.num_slices, dtype=torch.float64)
    for effect in effects.values():
        total += effect.square()
    return total


def _sum_over_others(values: Tensor, axis: int) -> Tensor:
    """Return the sum over all axes but one."""
    return values.transpose(0, axis).flatten(1).sum(1) if values.ndim > 1 else values


@contextmanager
def recorded_squares(network: nn.Module) -> Iterator[MeanSquares]:
    """Yield the mean square of each channel of the input of norms that divide by the root mean square."""
    sums: dict[str, Tensor] = {}
    names: dict[nn.Module, str] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        squares = inputs[0].detach().double().square()
        channels_first = getattr(layer, "channel_first", True)
        total = _sum_over_others(squares, 1 if channels_first else -1).cpu()
        name = names[layer]
        sums[name] = sums[name] + total if name in sums else total

    handles = []
    for name, layer in network.named_modules():
        if type(layer).__name__ in _RMS_NORMS:
            names[layer] = name
            handles.append(layer.register_forward_pre_hook(record))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
