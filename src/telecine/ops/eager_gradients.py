"""Eager gradients: a term's gradient is computed together with its value, and its graph is freed at once.

The caller then calls `backward()` on a scalar whose gradients are already known. They are linear in the incoming
gradient, so loss scales and weights that are applied later stay correct. Second derivatives do not exist.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import Scalar

Gradients: TypeAlias = list[Tensor | None]


def eager_backward(
    terms: Callable[[Tensor], Mapping[str, Scalar]], x: Tensor, parameters: Sequence[Tensor] = ()
) -> dict[str, Scalar]:
    """Return the scalars `terms(x)` by name, with their gradients for `x` and `parameters` already computed.

    The peak of memory is one call's; each scalar keeps a gradient of `x`'s shape. Without gradients it is a plain
    call.

    Args:
        terms: Called once, with a detached copy of `x` in at least float32.
        x: The tensor that the terms depend on.
        parameters: Further tensors that they depend on. Gradients for all else are lost.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return dict(terms(x))
    leaf = detached_leaf(x)
    values = dict(terms(leaf))
    return precompute_gradients(values, leaves=[leaf, *parameters], inputs=[x, *parameters])


def detached_leaf(x: Tensor) -> Tensor:
    """Return a detached copy that requires gradients, in at least float32.

    A half-precision gradient would underflow before it meets the loss scale.
    """
    return at_least_float32(x.detach()).requires_grad_()


def precompute_gradients(
    values: Mapping[str, Scalar], *, leaves: Sequence[Tensor], inputs: Sequence[Tensor]
) -> dict[str, Scalar]:
    """Differentiate scalars, and return them without their graph; `backward()` passes the gradients to `inputs`.

    Args:
        values: Scalars by name. One without a graph is returned as it is.
        leaves: The tensors that they were computed from.
        inputs: The tensors of which the leaves are copies.
    """
    differentiable = [name for name, value in values.items() if value.requires_grad]
    results = dict(values)
    for name in differentiable:
        gradients = differentiate(values[name], leaves, retain_graph=name != differentiable[-1])
        results[name] = attach_gradients(values[name], inputs, gradients)
    return results


def differentiate(
    value: Scalar, inputs: Sequence[Tensor], *, retain_graph: bool = False
) -> Gradients:
    """Return the gradient of `value` for each input, `None` where it does not depend on the input.

    Autocast is off meanwhile, as in a caller's `backward()`.

    Args:
        value: A scalar.
        inputs: Tensors that it may depend on.
        retain_graph: Keep the graph for another backward.
    """
    if not inputs or not value.requires_grad:
        return [None] * len(inputs)
    with autocast_off(value.device):
        return list(
            torch.autograd.grad(value, inputs, retain_graph=retain_graph, allow_unused=True)
        )


class GradientSum:
    """Runs several backwards, and keeps the sum of their gradients for the same parameters.

    In a backward, a hook on each parameter adds its sum so far as soon as its new gradient is computed, and frees both,
    so that memory never holds two complete sets::

        gradient_sum = GradientSum([w])
        gradient_sum.backward(real_loss)  # gradients == [d real_loss / d w]
        gradient_sum.backward(fake_loss)  # the hook of w takes this sum, and returns the new one
        gradient_sum.gradients  # [d (real_loss + fake_loss) / d w]

    `gradients` lacks those that a running backward has taken: it is valid between backwards, and after one that raised
    an error it is not.

    Args:
        parameters: The parameters.

    Attributes:
        gradients: The sum for each parameter, `None` where no backward has reached it.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.gradients: Gradients = [None] * len(parameters)

    def backward(
        self,
        output: Tensor,
        *,
        grad_output: Tensor | None = None,
        inputs: Sequence[Tensor] = (),
        zero_if: Tensor | None = None,
        retain_graph: bool = False,
    ) -> Gradients:
        """Run the backward of `output`: add the parameters' gradients, and return the inputs'. Autocast is off.

        Args:
            output: A scalar, or any tensor with a `grad_output`.
            grad_output: The gradient of the loss for `output`, of its shape.
            inputs: Further tensors that `output` depends on.
            zero_if: A bool scalar on the device, which the host does not wait for. If it is True, zeros take the place
                of the parameters' gradients.
            retain_graph: Keep the graph for another backward.
        """
        differentiated = [*inputs, *self.parameters]
        if not differentiated or not output.requires_grad:
            return [None] * len(inputs)
        with autocast_off(output.device), ExitStack() as hooks:
            for index, parameter in enumerate(self.parameters):
                if self.gradients[index] is not None or zero_if is not None:
                    hook = partial(self._add_sum_so_far, index, zero_if)
                    hooks.enter_context(parameter.register_hook(hook))
            gradients = torch.autograd.grad(
                output, differentiated, grad_output, retain_graph=retain_graph, allow_unused=True
            )
        for index, gradient in enumerate(gradients[len(inputs) :]):
            if gradient is not None:
                self.gradients[index] = gradient
        return list(gradients[: len(inputs)])

    def _add_sum_so_far(
        self, index: int, zero_if: Tensor | None, gradient: Tensor | None
    ) -> Tensor | None:
        """Return a parameter's new sum in place of its gradient in the running backward; a gradient hook."""
        if gradient is None:
            return None
        if zero_if is not None:
            gradient = torch.where(zero_if, 0, gradient)
        sum_so_far = self.gradients[index]
        self.gradients[index] = None
        if sum_so_far is None:
            return gradient
        return sum_so_far + gradient


def attach_gradients(
    value: Scalar, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> Scalar:
    """Return `value` without its graph; `backward()` on it passes each input its gradient.

    Args:
        value: A scalar.
        inputs: The tensors that get gradients.
        gradients: One for each input, or None.
    """
    return _PrecomputedGrad.apply(value.detach(), len(inputs), *inputs, *gradients)


class _PrecomputedGrad(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, num_inputs: int, *inputs_and_gradients: Tensor | None
    ) -> Tensor:
        inputs = inputs_and_gradients[:num_inputs]
        ctx.save_for_backward(*inputs_and_gradients[num_inputs:])
        ctx.dtypes = []
        for x in inputs:
            assert x is not None
            ctx.dtypes.append(x.dtype)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # `create_graph=True`
            contract = "False for gradients that were computed eagerly"
            remedy = 'Set `eager_gradients=False`, and `trains="both"` of the term `round_trip`.'
            raise argument_error("create_graph", contract, "True", remedy, RuntimeError)
        scaled: Gradients = [None] * len(ctx.saved_tensors)
        indices = []
        gradients = []
        for index, gradient in enumerate(ctx.saved_tensors):
            if gradient is not None:
                indices.append(index)
                gradients.append(gradient)
        if gradients:
            products = torch._foreach_mul(gradients, grad_output)
            for index, product in zip(indices, products, strict=True):
                scaled[index] = product.to(ctx.dtypes[index])
        return (None, None, *scaled, *[None] * len(scaled))
