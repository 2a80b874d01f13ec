"""What went into the decoder's last layer and came out of it, from which its weight's gradient follows.

A weight that is sharded over processes cannot be an input of `torch.autograd.grad`; the layer's activations can. The
adaptive weight takes either.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from telecine.objective.carry import gradients_of
from telecine.shapes import Scalar

# The arguments of a call, some of which may be frames that a causal layer kept from the call before.
Given: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class LayerUses:
    """The calls of one linear or convolution layer since `forget()`, a stand-in for its weight as `last_layer`.

    Args:
        layer: The module that owns `weight`. It must be linear in it, as convolutions are.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        # None in a copy, as averages of weights are: nobody would ever forget its calls.
        self._calls: list[tuple[Given, Tensor]] | None = []
        layer.register_forward_hook(self._record, with_kwargs=True)

    def forget(self) -> None:
        """Drop the calls so far; call it before each forward pass of the autoencoder."""
        self._calls = []

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: a copied or pickled layer leaves its calls behind."""
        return {**vars(self), "_calls": None}

    @property
    def requires_grad(self) -> bool:
        """Whether there is a graph from which a gradient can be had."""
        return any(output.requires_grad for _, output in self._calls or [])

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return self._weight().shape

    def gradient(self, loss: Scalar) -> Tensor | None:
        """Return `d loss / d weight`, None where the loss does not depend on it; the loss' graph is kept."""
        calls = [call for call in self._calls or [] if call[1].requires_grad]
        of_outputs = gradients_of(loss, [output for _, output in calls], retain_graph=True)
        parts = [
            self._of_weight(given, gradient)
            for (given, _), gradient in zip(calls, of_outputs, strict=True)
            if gradient is not None
        ]
        return sum(parts[1:], parts[0]) if parts else None

    def _of_weight(self, given: Given, of_output: Tensor) -> Tensor:
        """Return what one call contributes: the layer is linear in its weight, so that any value of that will do."""
        device, dtype = of_output.device, of_output.dtype
        stand_ins = {
            name: torch.zeros(p.shape, device=device, dtype=dtype, requires_grad=name == "weight")
            for name, p in self.layer.named_parameters()
        }
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().to(dtype), given)
        with torch.enable_grad():
            output = functional_call(self.layer, stand_ins, args, kwargs)
        (gradient,) = torch.autograd.grad(output, stand_ins["weight"], grad_outputs=of_output)
        return gradient

    def _weight(self) -> Tensor:
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight

    def _record(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        # A call with stand-ins is one of ours: its weight is no parameter of the layer.
        is_own = isinstance(layer.weight, nn.Parameter)
        if is_own and self._calls is not None and torch.is_grad_enabled():
            self._calls.append(((args, kwargs), output))
