"""Frozen modules: hidden from optimizers, checkpoints and wrappers, in evaluation mode and at least float32."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from telecine.base.precision import at_least_float32

Module = TypeVar("Module")


def freeze(module: nn.Module) -> None:
    """Freeze the parameters of a module in place; parameters and buffers of half precision become float32."""
    for parameter in module.parameters():  # scripted modules do not support `module.requires_grad_`
        parameter.requires_grad_(False)
    # Only if a dtype changes: `_apply` fails on tensors without values, as in plans.
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors):
        module._apply(at_least_float32)


class Frozen(nn.Module):
    """Base class of modules whose tensors are hidden from optimizers, checkpoints and data-parallel wrappers.

    They move with it, by `.to(device)`, `.double()` and the like; `.half()` and `.bfloat16()` leave their precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that move with it; a subclass adds those that it hides."""
        yield from (*self.parameters(), *self.buffers())

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is set on the surrounding model."""
        return super().train(False)


class FrozenModule(Frozen, Generic[Module]):
    """A frozen module inside another module, which does not see it.

    Args:
        module: The module, which is frozen in place and whose half-precision weights become float32; or a function,
            which is left as it is.
    """

    def __init__(self, module: Module) -> None:
        super().__init__()
        self._module: tuple[Any] = (module,)  # PyTorch does not find a module inside a tuple
        if isinstance(module, nn.Module):
            freeze(module)

    def in_eval_mode(self) -> Module:
        """Return the module, switched to evaluation mode: it may also belong to a model that trains."""
        module: Module = self._module[0]
        if isinstance(module, nn.Module):
            module.eval()
        return module

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that move with it, also those of frozen modules in the module, which are hidden, too."""
        yield from super().tensors()
        (module,) = self._module
        if not isinstance(module, nn.Module):
            return
        yield from (*module.parameters(), *module.buffers())
        for inner in module.modules():
            if isinstance(inner, Frozen):
                yield from inner.tensors()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        (module,) = self._module
        if isinstance(module, nn.Module):
            module._apply(lambda tensor: keep_precision(fn, tensor))
        return self


class FrozenTensors(Frozen):
    """Tensors inside a module, which are no buffers of it.

    Args:
        weights: The tensors by name.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that move with it."""
        yield from super().tensors()
        yield from self.weights.values()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.weights = {name: keep_precision(fn, tensor) for name, tensor in self.weights.items()}
        return self


def keep_precision(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Return `fn(tensor)`, such as the tensor on another device, unless that is in half precision."""
    moved = fn(tensor)
    if moved.dtype in (torch.float32, torch.float64):
        return moved
    return tensor.to(moved.device)
