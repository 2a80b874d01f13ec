"""Copies of a model with other tensors, such as those of a checkpoint, from which they are saved while it trains."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.frozen import Frozen

Model = TypeVar("Model", bound=nn.Module)


def copy_with(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    """Return a copy of a model with other tensors in place of those that its state dict names.

    None of these are copied: `deepcopy` takes from `memo` what was copied before, here the other tensors. It keeps one
    tensor with several names one tensor, which `load_state_dict(assign=True)` does not. What else a copy has, its class
    says in `__getstate__`, which `deepcopy` calls.

    Args:
        model: The model. Its frozen networks have no tensor in the state dict: the copy shares them.
        tensors: A tensor for each name in the state dict, of the same shape.

    Raises:
        ValueError: `copy.deepcopy` does not copy the model.
    """
    memo: dict[int, Any] = {
        id(module): module for module in model.modules() if isinstance(module, Frozen)
    }
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in memo:  # a tensor with several names
            continue
        other = tensors[name]
        if isinstance(tensor, nn.Parameter):
            other = nn.Parameter(other, tensor.requires_grad)
        memo[id(tensor)] = other
    try:
        return deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        # A RuntimeError of PyTorch for tensors with a graph, a TypeError for everything else.
        remedy = "Use `torch.nn.utils.parametrizations` in the place of `weight_norm`, and keep no open files in it."
        contract = "a module that `copy.deepcopy` copies"
        got = f"one with which it fails ({error})"
        raise argument_error("autoencoder", contract, got, remedy) from error


def tensors_like(model: nn.Module, make: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return a new tensor for each one in a model's state dict; a tensor with several names has one new tensor.

    Args:
        model: The model.
        make: From a tensor without a graph to the new one.
    """
    tensors: dict[str, Tensor] = {}
    new_by_id: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in new_by_id:
            new_by_id[id(tensor)] = make(tensor.detach())
        tensors[name] = new_by_id[id(tensor)]
    return tensors
