"""Eager gradients: a term's gradient is computed with its value, and its graph is let go before the next is built.

What the caller calls `backward()` on is then a scalar that carries gradients which are known already. They are linear
in the incoming gradient, so loss scales and weights that come later stay right; a gradient of a gradient does not
exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from telecine.precision import at_least_float32, autocast_off
from telecine.shapes import Scalar

Gradients: TypeAlias = list[Tensor | None]


def carry(term: Callable[[Tensor], Sequence[Scalar]], x: Tensor) -> tuple[Scalar, ...]:
    """Return `term(x)`, scalars whose graph leads to `x` in one step.

    The peak of memory is that of one call, and what stays is a gradient of `x`'s shape for each scalar. Without
    gradients this is a plain call.

    Args:
        term: Maps a tensor to scalars. It is called once, with a detached copy of `x` in at least float32; gradients
            for anything else that it depends on are lost.
        x: What the gradients are taken with respect to.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return tuple(term(x))
    # In float32: a gradient of half precision would underflow before it meets the loss scale.
    leaf = at_least_float32(x.detach()).requires_grad_()
    values = term(leaf)
    attached = [value for value in values if value.requires_grad]
    gradients = iter([gradients_of(value, [leaf], retain_graph=value is not attached[-1]) for value in attached])
    return tuple(with_gradients(value, [x], next(gradients)) if value.requires_grad else value for value in values)


def gradients_of(
    value: Scalar,
    inputs: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    onto: Gradients | None = None,
) -> Gradients:
    """Return the gradient of `value` for each input, None where it does not depend on one.

    Autocast is off meanwhile, as it is wherever a caller's `backward()` runs.

    Args:
        value: What is differentiated.
        inputs: By what.
        retain_graph: Whether the graph is needed afterwards.
        onto: Gradients of another loss, one for each input, which this one's are added to. Each is added as soon as it
            is known and leaves the list, so that the two are never in memory side by side.
    """
    if not (inputs and value.requires_grad):
        return or_else([None] * len(inputs), onto)
    with nullcontext() if onto is None else added_to(onto, inputs), autocast_off(value.device):
        found = torch.autograd.grad(value, inputs, retain_graph=retain_graph, allow_unused=True)
    return or_else(found, onto)


@contextmanager
def added_to(known: Gradients, inputs: Sequence[Tensor], *, counts: Tensor | None = None) -> Iterator[None]:
    """Let a backward inside return the gradient of each input plus the one that is `known`, which leaves the list.

    Args:
        known: A gradient for each input, or None in its place.
        inputs: By what is differentiated.
        counts: A 0-d tensor, 1 if the backward's own gradients count and 0 if not.
    """

    def hook(index: int) -> Callable[[Tensor | None], Tensor | None]:
        def add(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            before, known[index] = known[index], None
            share = gradient.new_ones(()) if counts is None else counts.to(gradient.dtype)
            return share * gradient if before is None else before.addcmul(share, gradient)

        return add

    with ExitStack() as hooks:
        for index, x in enumerate(inputs):
            hooks.enter_context(x.register_hook(hook(index)))
        yield


def or_else(found: Sequence[Tensor | None], known: Gradients | None) -> Gradients:
    """Return the gradients that were `found`, and where there is none the one that is `known`."""
    return [y if x is None else x for x, y in zip(found, known or [None] * len(found), strict=True)]


def with_gradients(value: Scalar, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Scalar:
    """Return `value`, detached from its own graph, such that `backward()` hands each input its known gradient."""
    return _Carried.apply(value.detach(), len(inputs), *inputs, *gradients)


class _Carried(torch.autograd.Function):
    """The identity on a scalar, with a backward that was computed before."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, num_inputs: int, *inputs_and_gradients: Tensor | None) -> Tensor:
        inputs, gradients = inputs_and_gradients[:num_inputs], inputs_and_gradients[num_inputs:]
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs if x is not None]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        carried = [
            None if gradient is None else (incoming * gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (None, None, *carried, *[None] * len(carried))


def watched(x: Tensor, watch: Callable[[Tensor], None] | None) -> Tensor:
    """Return `x`; `watch`, if any, is called with the gradient that comes to it in each backward through this copy."""
    if watch is None or not x.requires_grad:
        return x
    copy = x.view_as(x)
    copy.register_hook(watch)
    return copy
