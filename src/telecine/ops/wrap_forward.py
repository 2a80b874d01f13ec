"""Wrappers around the `forward` of single modules: how layers of a library are changed from outside."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


def wrap_forward(module: nn.Module, wrapper: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Replace what a module computes by a function that gets what it computed before, and perhaps calls it.

    A module may have several wrappers: the last one is the outermost. `print(module.forward)` shows all.

    Args:
        module: Changed in place. Its weights, and other modules of its class, stay.
        wrapper: It is called with the `forward` of before, `args`, and then the inputs of the module.
        *args: Further arguments of the wrapper.
        **kwargs: Its keyword arguments.
    """
    module.forward = partial(wrapper, module.forward, *args, **kwargs)


def unwrap_forward(module: nn.Module) -> None:
    """Remove the wrapper that was added last."""
    wrapped: Any = module.forward
    module.forward = wrapped.args[0]
