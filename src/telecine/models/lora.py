"""LoRA adapters of weights (arXiv:2106.09685).

The update is a parametrization of the weight. A second convolution beside the first, as in peft's adapters, differs
from the merged weight where a layer pads or caches frames in its own `forward`, as causal convolutions do.
"""

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from telecine.models.copies import copy_with

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that can have LoRA adapters."""

_Model = TypeVar("_Model", bound=nn.Module)


class _LowRankUpdate(nn.Module):
    """Adds `alpha / rank * B @ A` to a weight (equation 3 of the paper): `down` is A, of `rank` rows, and `up` is B."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        # The model computes the same at the start.
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def add_low_rank(model: nn.Module, names: Iterable[str], *, rank: int, alpha: float) -> None:
    """Freeze a model and add LoRA adapters, which start at 0, to layers.

    Args:
        model: Changed in place.
        names: Of its linear layers and convolutions.
        rank: Rank of the updates.
        alpha: The updates are scaled by `alpha / rank`.
    """
    model.requires_grad_(False)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        parametrize.register_parametrization(
            layer, "weight", _LowRankUpdate(layer.weight, rank, alpha)
        )


def low_rank_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that have LoRA adapters."""
    layers = []
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            update = module.parametrizations["weight"][0]  # type: ignore[index]
            if isinstance(update, _LowRankUpdate):
                layers.append(module)
    return layers


def merge_low_rank(model: _Model) -> _Model:
    """Return a copy with LoRA adapters merged into the weights, under the original names; `model` if it has none.

    The copy shares the memory of all other tensors.
    """
    if not low_rank_layers(model):
        return model
    merged = copy_with(model, model.state_dict())
    merge_in_place(merged)
    return merged


@torch.no_grad()
def merge_in_place(model: nn.Module, store: Callable[[Tensor], Tensor] | None = None) -> None:
    """Merge LoRA adapters into the weights, under the original names; `store` may copy each to another tensor."""
    for layer in low_rank_layers(model):
        # `remove_parametrizations` would change the class, which a copy shares with the original.
        weight = layer.weight
        assert isinstance(weight, Tensor)
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
        if store is not None:
            weight = store(weight)
        layer.weight = nn.Parameter(weight)
