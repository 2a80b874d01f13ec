"""The base class of frozen networks: always in evaluation mode and in float32, absent from state dicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Self = TypeVar("Self", bound="Frozen")


class Frozen(nn.Module, ABC):
    """A module whose tensors are hidden from optimizers, checkpoints and data-parallel wrappers.

    A subclass stores its tensors where `nn.Module` does not find them and moves them in `_move`, which is called for
    `.to(device)`, `.double()` and the like. `.half()` and `.bfloat16()` do not change their precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    @abstractmethod
    def _move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Replace each hidden tensor by `fn(tensor)`."""

    def train(self: Self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is set on the surrounding model."""
        return super().train(False)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._move(lambda tensor: _keep_precision(fn, tensor))
        return self


def _keep_precision(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    moved = fn(tensor)
    return moved if moved.dtype in (torch.float32, torch.float64) else tensor.to(moved.device)
