"""Eager gradients: a term's gradient is computed together with its value, and its graph is freed at once.

The caller then calls `backward()` on a scalar whose gradients are already known. They are linear in the incoming
gradient, so loss scales and weights that are applied later stay correct. Second derivatives do not exist.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
import torch._functorch.config
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import Scalar

# The gradients of several terms are taken through one graph, so compiled code must keep its buffers after the first.
torch._functorch.config.donated_buffer = False

Gradients: TypeAlias = list[Tensor | None]


def eager_backward(
    terms: Callable[[Tensor], Mapping[str, Scalar]], x: Tensor, parameters: Sequence[Tensor] = ()
) -> dict[str, Scalar]:
    """Return the scalars `terms(x)` by name, with their gradients for `x` and `parameters` already computed.

    Memory is that of one call at the peak; each scalar keeps a gradient of `x`'s shape. Without gradients it is a plain
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
    return with_gradients_of_each(values, [leaf, *parameters], [x, *parameters])


def detached_leaf(x: Tensor) -> Tensor:
    """Return a detached copy that requires gradients, in at least float32.

    A half-precision gradient would underflow before it meets the loss scale.
    """
    return at_least_float32(x.detach()).requires_grad_()


def with_gradients_of_each(
    values: Mapping[str, Scalar], leaves: Sequence[Tensor], inputs: Sequence[Tensor]
) -> dict[str, Scalar]:
    """Return scalars whose `backward()` passes `inputs` the gradients that each has for `leaves`; free the graph.

    Args:
        values: Scalars by name. One without a graph is returned as it is.
        leaves: The tensors that they were computed from.
        inputs: The tensors of which the leaves are copies.
    """
    attached = [name for name, value in values.items() if value.requires_grad]
    results = dict(values)
    for name in attached:
        gradients = gradients_of(values[name], leaves, retain_graph=name != attached[-1])
        results[name] = with_gradients(values[name], inputs, gradients)
    return results


def gradients_of(
    value: Scalar,
    inputs: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    add_to: Gradients | None = None,
) -> Gradients:
    """Return the gradient of `value` for each input, `None` where it does not depend on the input.

    Autocast is off meanwhile, as in a caller's `backward()`.

    Args:
        value: A scalar.
        inputs: Tensors that it may depend on.
        retain_graph: Keep the graph for another backward.
        add_to: Gradients of another scalar, one per input, to add. The list is consumed: each gradient leaves it when
            its sum is computed, so that memory never holds two complete sets.
    """
    earlier: Gradients = [None] * len(inputs) if add_to is None else add_to
    if not inputs or not value.requires_grad:
        return earlier
    adding = nullcontext() if add_to is None else _adding(earlier, inputs)
    with adding, autocast_off(value.device):
        gradients = torch.autograd.grad(value, inputs, retain_graph=retain_graph, allow_unused=True)
    return _with_unused(gradients, earlier)


@contextmanager
def _adding(
    earlier: Gradients, inputs: Sequence[Tensor], *, factor: Tensor | None = None
) -> Iterator[None]:
    """Make a backward inside the block return, for each input, its gradient times `factor` plus the earlier gradient.

    A hook adds as soon as a gradient is computed, and drops the earlier one from the list. Those of inputs that the
    backward does not reach stay there.

    Args:
        earlier: One gradient for each input, or None.
        inputs: The inputs of the backward.
        factor: A scalar, or None for 1.
    """

    def add(index: int, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        other = earlier[index]
        earlier[index] = None
        if factor is None:
            return gradient if other is None else other + gradient
        scale = factor.to(gradient.dtype)
        return scale * gradient if other is None else other.addcmul(scale, gradient)

    with ExitStack() as hooks:
        for index, x in enumerate(inputs):
            hooks.enter_context(x.register_hook(partial(add, index)))
        yield


def _with_unused(gradients: Sequence[Tensor | None], earlier: Gradients) -> Gradients:
    """Return the gradients of a backward inside `_adding`; for an input that it did not reach, the earlier gradient."""
    return [
        other if gradient is None else gradient
        for gradient, other in zip(gradients, earlier, strict=True)
    ]


def with_gradients(
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
        ctx.dtypes = [x.dtype for x in inputs if x is not None]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # `create_graph=True`
            remedy = "Build the loss with `eager_gradients=False`."
            raise argument_error(
                "eager_gradients", "False for second derivatives", "True", remedy, RuntimeError
            )
        gradients = [gradient for gradient in ctx.saved_tensors if gradient is not None]
        products = iter(torch._foreach_mul(gradients, grad_output) if gradients else ())
        scaled: Gradients = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            scaled.append(None if gradient is None else next(products).to(dtype))
        return (None, None, *scaled, *[None] * len(scaled))


def shared_backward(
    generator_loss: Scalar,
    discriminator_loss: Scalar,
    logits: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    *,
    retain_graph: bool,
    add_to: Gradients,
) -> tuple[Tensor, Gradients]:
    """Return the gradient of the generator's loss for `x`, and of the discriminator's fake part for its parameters.

    One backward computes both. With one logit `l_b` per sample `x_b`, and samples that do not depend on each other::

        d generator_loss / d x_b = (d generator_loss / d l_b) * (d l_b / d x_b)
        d discriminator_loss / d parameters = sum_b (d discriminator_loss / d l_b) * (d l_b / d parameters)

    The backward has the discriminator's cotangents `d discriminator_loss / d l_b`, so its gradients of the parameters
    are right, and that of `x_b` is scaled by the quotient of both cotangents.

    Args:
        generator_loss: The generator's loss, a function of `logits`.
        discriminator_loss: The fake part of the discriminator's loss, a function of `logits`.
        logits: `(B,)`, those of the reconstructions.
        x: The input `(B, ...)` of the discriminator.
        parameters: Those of the discriminator.
        retain_graph: Keep the discriminator's graph for another backward.
        add_to: Gradients, one per parameter, that are added to the latter as in `gradients_of`.
    """
    # Where the discriminator's cotangent is 0, as with the hinge beyond its margin, the generator's still counts. Use a
    # fraction of it there, so small that it vanishes in the rounding of the parameters' gradients. The input's gradient
    # is scaled up exactly, since the fraction is a power of two.
    tiny_fraction = 2.0**-40
    (generator_cotangent,) = torch.autograd.grad(generator_loss, logits)
    (discriminator_cotangent,) = torch.autograd.grad(discriminator_loss, logits)
    tiny = tiny_fraction * generator_cotangent
    used = torch.where(discriminator_cotangent.abs() >= tiny.abs(), discriminator_cotangent, tiny)
    # If all cotangents are tiny, rounding hides none of them: the parameters' gradients are then 0.
    factor = (discriminator_cotangent != 0).any()
    with _adding(add_to, parameters, factor=factor), autocast_off(logits.device):
        grad_x, *grad_parameters = torch.autograd.grad(
            logits,
            [x, *parameters],
            grad_outputs=used,
            retain_graph=retain_graph,
            allow_unused=True,
        )
    # Where `used` is 0, both cotangents are.
    scale = torch.where(used == 0, 0.0, generator_cotangent.to(x.dtype) / used.to(x.dtype))
    return grad_x * scale.view(-1, *[1] * (x.ndim - 1)), _with_unused(grad_parameters, add_to)
