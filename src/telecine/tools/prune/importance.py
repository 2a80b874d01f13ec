"""How much each channel matters, by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor, nn

from telecine.base.shapes import Scalar, Video
from telecine.base.terminal import with_progress
from telecine.models.causal_blocks import ChannelNorm
from telecine.models.diffusers.families import RMS_NORMS
from telecine.models.latent_autoencoder import LatentAutoencoder
from telecine.tools.prune.channels import ChannelGroup
from telecine.tools.prune.surgery import MeanSquares, gain_with_zeros, is_norm_gain

_RMS_NORMS = {*RMS_NORMS, ChannelNorm.__name__, "Kandinsky6VAERMSNorm"}
"""Norms that divide by the root mean square of the channels, and then multiply by `gamma` or `scale`."""
# The greedy importance removes the channels of a group in this many rounds, and measures anew after each.
_ROUNDS = 4
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


def reconstruction_error(model: LatentAutoencoder, video: Video) -> Scalar:
    """Return the mean absolute error of the reconstruction of a clip, whose gradient reaches the decoder alone."""
    with torch.no_grad():
        latent = model.encode(video).mode()
    reconstruction, _ = model.decode_with_losses(latent)
    return (reconstruction - video).abs().mean()


def score_by_gradient(
    model: LatentAutoencoder,
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    videos: Sequence[Video],
) -> Scores:
    """Return the importance of channels by activation times gradient.

    To first order, removing a channel changes the loss by the sum of its activations times their gradients, which is
    that of the weights and biases that make it times theirs (equation 8 of arXiv:1906.10771). The score is the mean of
    its square over clips; the loss is `reconstruction_error`.

    Args:
        model: The autoencoder. Its gradients are cleared.
        network: Its part that is pruned.
        groups: The groups of channels.
        videos: Clips `(1, C, T, H, W)` in [-1, 1].
    """
    scores = {group.name: torch.zeros(group.num_slices, dtype=torch.float64) for group in groups}
    model.zero_grad(set_to_none=True)
    for video in with_progress(videos, "measuring channels"):
        reconstruction_error(model, video).backward()
        parameters = dict(network.named_parameters())
        for group in groups:
            scores[group.name] += _squared_effects(group, parameters)
        model.zero_grad(set_to_none=True)
    return scores


@torch.no_grad()
def score_by_loss(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    shares: Sequence[Fraction],
    squares: MeanSquares,
    loss: Callable[[], float],
) -> Scores:
    """Return the round in which greedy removal by measured loss removes each slice; later for those that stay.

    In each round and group, the loss is measured without each slice that is left (the oracle of arXiv:1611.06440), and
    those without which it is smallest are removed. The next group is measured without them. Source of the greedy order:
    NetAdapt (arXiv:1804.03230), which takes the proposal with the best measured result in each step.

    Args:
        network: The network, whose weights are the same afterwards.
        groups: The groups of channels.
        shares: The share of the slices that stays, for each of `Widths.stage_groups`.
        squares: Those of the input of norms, see `recorded_squares`.
        loss: Measures the loss with the network as it is.
    """
    weights = network.state_dict()
    original = {name: tensor.clone() for name, tensor in weights.items()}
    scores = {}
    removed = {}
    for group in groups:
        scores[group.name] = torch.full((group.num_slices,), _ROUNDS, dtype=torch.float64)
        removed[group.name] = torch.zeros(group.num_slices, dtype=torch.bool)
    work = [(number, group) for number in range(_ROUNDS) for group in groups]
    for number, group in with_progress(work, "measuring without each channel"):
        # As many of each group of the norms in a round.
        in_norm_group = group.num_slices // group.num_norm_groups
        num_removed = in_norm_group - int(in_norm_group * shares[group.stage_group_index])
        num_before = num_removed * number // _ROUNDS
        num_missing = num_removed * (number + 1) // _ROUNDS - num_before
        if num_missing == 0:
            continue
        before_round = removed[group.name]
        losses = torch.full((group.num_slices,), torch.inf, dtype=torch.float64)
        for index in (~before_round).nonzero().flatten().tolist():
            without_one_more = before_round.clone()
            without_one_more[index] = True
            _set_to_zero(weights, original, group, without_one_more, squares)
            losses[index] = loss()
        after_round = before_round.clone()
        for start in range(0, group.num_slices, in_norm_group):
            members = slice(start, start + in_norm_group)
            chosen = losses[members].topk(num_missing, largest=False).indices + start
            after_round[chosen] = True
            scores[group.name][chosen] = number
        _set_to_zero(weights, original, group, after_round, squares)
        removed[group.name] = after_round
    for name, tensor in original.items():
        weights[name].copy_(tensor)
    return scores


def _set_to_zero(
    weights: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    group: ChannelGroup,
    removed: Tensor,
    squares: MeanSquares,
) -> None:
    """Set what makes the removed slices of a group to 0, so that the output is that of a network without them.

    Args:
        weights: Those of the network, which are changed.
        original: Those of the network with all channels.
        group: The group.
        removed: Which of its slices are removed, `(num_slices,)`.
        squares: Those of the input of norms, see `recorded_squares`.
    """
    kept = (~removed).nonzero().flatten()
    for axis in group.axes:
        if axis.dim > 0:  # what reads these channels reads 0
            continue
        tensor = original[axis.weight]
        is_kept = torch.zeros(len(tensor), dtype=tensor.dtype, device=tensor.device)
        entries = axis.indices(len(tensor), group.num_slices, kept)
        is_kept[entries.to(tensor.device)] = 1
        if is_norm_gain(axis.weight, squares):
            tensor = tensor * gain_with_zeros(axis.weight, entries, squares)
        weights[axis.weight].copy_(tensor * is_kept.view(-1, *[1] * (tensor.ndim - 1)))


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
