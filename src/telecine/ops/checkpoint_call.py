"""Gradient checkpointing (arXiv:1604.06174) of calls that keep frames for the next call, as causal models do.

Such a call reads and changes caches: lists and dicts among its arguments, or attributes of its layers. The caches
before the call are an input of its recomputation, the caches after it an output, and gradients flow through both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from telecine.ops.pass_options import pass_options, using_pass_options
from telecine.ops.wrap_forward import wrap_forward

# Returns new lists and dicts, which hold the same tensors.
_copy = partial(tree_map, lambda leaf: leaf)


class RunResult(NamedTuple):
    """What a run of a `CheckpointedCall` returns."""

    output: Any
    arguments: list[Any]
    """The copies of the positional arguments, then of the keyword arguments, as the run left them."""
    cached: list[Any]
    """What each layer keeps after the run."""


class CheckpointedCall:
    """A call of a function whose activations are not kept; it can be run any number of times, with the same results.

    Args:
        forward: The function; it may change lists and dicts among its arguments, also nested ones.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        layers: Layers that keep tensors between calls.
        cache_name: The attribute in which they keep them.

    Attributes:
        is_first_run: Whether the call has not run yet, or its first run, the forward, has not ended.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        layers: Sequence[nn.Module],
        cache_name: str,
    ) -> None:
        self.forward = forward
        self.layers = layers
        self.cache_name = cache_name
        self.is_first_run = True
        # Each run starts from the arguments, the caches and the group of processes of this moment.
        self._args = _copy(args)
        self._kwargs = _copy(kwargs)
        self._cached_before = self.cached()
        self._context_group = pass_options().context_group

    def run(self) -> RunResult:
        """Call the function with copies of the caches before the call; the layers keep what they kept."""
        args = _copy(self._args)
        kwargs = _copy(self._kwargs)
        cached_outside = self.cached()
        self.set_cached(self._cached_before)
        outermost = pass_options().checkpointed_call or self
        try:
            with using_pass_options(context_group=self._context_group, checkpointed_call=outermost):
                output = self.forward(*args, **kwargs)
            return RunResult(output, [*args, *kwargs.values()], self.cached())
        finally:  # also when the recomputation stops early
            self.set_cached(cached_outside)
            self.is_first_run = False

    def cached(self) -> list[Any]:
        """Return what each layer keeps."""
        return [getattr(layer, self.cache_name) for layer in self.layers]

    def set_cached(self, values: list[Any]) -> None:
        """Replace what the layers keep."""
        for layer, value in zip(self.layers, values, strict=True):
            setattr(layer, self.cache_name, value)


def checkpoint_call(
    forward: Callable[..., Any],
    *args: Any,
    cached_in: Iterable[nn.Module] = (),
    cache_name: str = "",
    **kwargs: Any,
) -> Any:
    """Return `forward(*args, **kwargs)`, whose activations are computed again in the backward; see `CheckpointedCall`.

    The caches that it reads and changes may hold tensors with gradients. Without gradients this is a plain call.

    Args:
        forward: The function.
        *args: Its arguments; lists and dicts among them are caches.
        cached_in: Layers that keep tensors between calls.
        cache_name: The attribute in which they keep them.
        **kwargs: Further arguments of the function.
    """
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    call = CheckpointedCall(forward, args, kwargs, list(cached_in), cache_name)
    # The tensors say which device's random state is kept. Passing caches would create a reference cycle.
    tensors = [value for value in args if isinstance(value, Tensor)]
    result: RunResult = checkpoint(lambda *_: call.run(), *tensors, use_reentrant=False)
    for value, changed in zip((*args, *kwargs.values()), result.arguments, strict=True):
        overwrite(value, changed)
    call.set_cached(result.cached)
    return result.output


def checkpoint_module(module: nn.Module, cache_name: str) -> None:
    """Wrap a module's `forward` in a `checkpoint_call`; its layers may keep tensors in the attribute `cache_name`."""
    cached_in = [layer for layer in module.modules() if hasattr(layer, cache_name)]
    wrap_forward(module, checkpoint_call, cached_in=cached_in, cache_name=cache_name)


def overwrite(value: Any, by: Any) -> None:
    """Give a list or a dict the contents of another one."""
    if isinstance(value, dict):
        value.update(by)
    elif isinstance(value, list):
        value[:] = by
