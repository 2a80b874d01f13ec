"""What is not trained: hidden from optimizers, checkpoints and wrappers, in evaluation mode and at least float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from telecine.base.precision import at_least_float32

Self = TypeVar("Self", bound="Frozen")
Hidden = TypeVar("Hidden")


class Frozen(nn.Module, Generic[Hidden]):
    """A module whose tensors are hidden from optimizers, checkpoints and data-parallel wrappers.

    It moves them with `.to(device)`, `.double()` and the like; `.half()` and `.bfloat16()` leave their precision.

    Args:
        hidden: A module, which is frozen in place and whose half-precision weights become float32; tensors by name;
            or a function, which is left as it is.
    """

    def __init__(self, hidden: Hidden) -> None:
        super().__init__()
        self._hidden = (hidden,)  # PyTorch does not find a module inside a tuple
        self.eval()
        if isinstance(hidden, nn.Module):
            for parameter in hidden.parameters():  # scripted modules do not support `hidden.requires_grad_`
                parameter.requires_grad_(False)
            hidden._apply(at_least_float32)

    @property
    def hidden(self) -> Hidden:
        """What is hidden; a module is in evaluation mode."""
        (hidden,) = self._hidden
        if isinstance(hidden, nn.Module):
            hidden.eval()  # each time: the module may also belong to a model that is in training mode
        return hidden

    def train(self: Self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is set on the surrounding model."""
        return super().train(False)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        (hidden,) = self._hidden
        if isinstance(hidden, nn.Module):
            hidden._apply(lambda tensor: _keep_precision(fn, tensor))
        elif isinstance(hidden, dict):
            self._hidden = ({name: _keep_precision(fn, tensor) for name, tensor in hidden.items()},)
        return self


def _keep_precision(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    moved = fn(tensor)
    return moved if moved.dtype in (torch.float32, torch.float64) else tensor.to(moved.device)
