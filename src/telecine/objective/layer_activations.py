"""The activations of the decoder's last layer, from which the gradient of its weight is computed.

A weight that is sharded over processes cannot be an input of `torch.autograd.grad`, but the layer's output can. The
adaptive weight accepts either as `last_layer`.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from telecine.objective.eager import gradients_of
from telecine.shapes import Scalar

# The arguments of a call, which may include frames that a causal layer cached in the call before.
Inputs: TypeAlias = tuple[tuple[object, ...], dict[str, object]]


class LayerActivations:
    """The inputs and outputs of a linear or convolution layer since `clear()`; replaces its weight as `last_layer`.

    Args:
        layer: The module that owns `weight`. Its output must be linear in the weight, as it is for convolutions.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        # None in a copy, such as an averaged model: nothing would ever clear its calls.
        self._calls: list[tuple[Inputs, Tensor]] | None = []
        layer.register_forward_hook(self._record, with_kwargs=True)

    def clear(self) -> None:
        """Drop the recorded calls. Call it before each forward pass of the autoencoder."""
        self._calls = []

    def __getstate__(self) -> dict[str, object]:
        """Leave the recorded calls out of copies and pickles."""
        return {**vars(self), "_calls": None}

    @property
    def requires_grad(self) -> bool:
        """Whether any recorded output has a graph."""
        return any(output.requires_grad for _, output in self._calls or [])

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.shape

    def weight_gradient(self, loss: Scalar) -> Tensor | None:
        """Return `d loss / d weight`, `None` if the loss does not depend on it. The graph of the loss is kept."""
        calls = [call for call in self._calls or [] if call[1].requires_grad]
        output_gradients = gradients_of(loss, [output for _, output in calls], retain_graph=True)
        parts = [
            self._weight_gradient_of_call(inputs, gradient)
            for (inputs, _), gradient in zip(calls, output_gradients, strict=True)
            if gradient is not None
        ]
        return sum(parts[1:], parts[0]) if parts else None

    def _weight_gradient_of_call(self, inputs: Inputs, grad_output: Tensor) -> Tensor:
        """Return one call's part. The layer is linear in its weight, so zeros do as its value."""
        device, dtype = grad_output.device, grad_output.dtype
        zeros = {
            name: torch.zeros(p.shape, device=device, dtype=dtype, requires_grad=name == "weight")
            for name, p in self.layer.named_parameters()
        }
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().to(dtype), inputs)
        with torch.enable_grad():
            output = functional_call(self.layer, zeros, args, kwargs)
        (gradient,) = torch.autograd.grad(output, zeros["weight"], grad_outputs=grad_output)
        return gradient

    def _record(self, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> None:
        # In `functional_call` above, the weight is a plain tensor; that call is not recorded.
        is_forward = isinstance(layer.weight, nn.Parameter)
        if is_forward and self._calls is not None and torch.is_grad_enabled():
            self._calls.append(((args, kwargs), output))
