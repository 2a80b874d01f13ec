"""Low-rank updates of weights (LoRA, arXiv 2106.09685).

The update is added to the weight, as a parametrization. Adapters that add a second convolution beside the first, as
peft's do, compute something else than the merged weight where a layer pads or caches frames in a `forward` of its own,
as the causal convolutions of video autoencoders do; and they cannot be built for such classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from telecine.shapes import argument_error

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Model = TypeVar("Model", bound=nn.Module)


class LowRankUpdate(nn.Module):
    """Adds `alpha / rank * B @ A` to a weight: equation 3 of the paper, with a kernel's elements among A's columns.

    Args:
        weight: `(out, ...)`, which is frozen.
        rank: rows of A.
        alpha: scale of the update.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        # Zero, so that training starts from the model as it was.
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its update."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def add_low_rank(model: nn.Module, names: Iterable[str], *, rank: int, alpha: float) -> None:
    """Freeze a model and give the layers of these names an update, which is 0 at the start.

    Args:
        model: Changed in place.
        names: Convolutions and linear layers.
        rank: Rank of the updates; a layer with fewer rows or columns has no use of more.
        alpha: Scale of the updates, times 1 / rank.
    """
    check_rank(rank)
    model.requires_grad_(False)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, rank, alpha))


def low_rank_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that carry low-rank updates."""
    updates = [module for module in model.modules() if parametrize.is_parametrized(module, "weight")]
    return [layer for layer in updates if isinstance(layer.parametrizations["weight"][0], LowRankUpdate)]  # type: ignore[index]


@torch.no_grad()
def merged(model: Model) -> Model:
    """Return a model whose weights contain their low-rank updates and have their own names again.

    It is `model` itself where there are none, a copy otherwise.
    """
    if not low_rank_layers(model):
        return model
    plain = copy.deepcopy(model)
    for layer in low_rank_layers(plain):
        # Not by `remove_parametrizations`: it changes the class, which a copy shares with its original.
        weight = layer.weight
        assert isinstance(weight, Tensor)
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
        layer.weight = nn.Parameter(weight)
    return plain


def check_rank(rank: int) -> None:
    """Raise a `ValueError` unless a rank is positive."""
    if rank < 1:
        raise argument_error("lora_rank", "at least 1", rank, "8 to 64 are usual.")
