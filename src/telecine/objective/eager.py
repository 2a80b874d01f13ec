"""Eager gradients: a term's gradient is computed together with its value, and its graph is freed at once.

The caller then calls `backward()` on a scalar whose gradients are already known. They are linear in the incoming
gradient, so loss scales and weights that are applied later stay correct. Second derivatives do not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import Scalar
from telecine.losses import GANLoss

Gradients: TypeAlias = list[Tensor | None]

# A logit without a gradient in the discriminator's loss, as with the hinge beyond its margin, still has one in the
# generator's. It goes through the shared backward with a cotangent so small that it vanishes in the rounding of the
# discriminator's gradients, and the input's gradient is scaled up afterwards: exactly, since this is a power of two.
TINY_COTANGENT = 2.0**-40


def eager_backward(term: Callable[[Tensor], Sequence[Scalar]], x: Tensor) -> tuple[Scalar, ...]:
    """Return the scalars `term(x)`, with their gradients with respect to `x` already computed.

    Peak memory is that of one call; a gradient of `x`'s shape is kept for each scalar. Without gradients this is a
    plain call.

    Args:
        term: Maps a tensor to scalars. It is called once, with a detached copy of `x` in at least float32. Gradients
            with respect to anything else are lost.
        x: The tensor to differentiate with respect to.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return tuple(term(x))
    # In float32: a half-precision gradient would underflow before it meets the loss scale.
    leaf = at_least_float32(x.detach()).requires_grad_()
    values = term(leaf)
    attached = [value for value in values if value.requires_grad]
    gradients = iter([gradients_of(value, [leaf], retain_graph=value is not attached[-1]) for value in attached])
    return tuple(with_gradients(value, [x], next(gradients)) if value.requires_grad else value for value in values)


def gradients_of(
    value: Scalar, inputs: Sequence[Tensor], *, retain_graph: bool = False, add_to: Gradients | None = None
) -> Gradients:
    """Return the gradient of `value` for each input, `None` where it does not depend on the input.

    Autocast is off meanwhile, as in a caller's `backward()`.

    Args:
        value: The scalar to differentiate.
        inputs: The tensors to differentiate with respect to.
        retain_graph: Keep the graph.
        add_to: Gradients of another scalar, one per input, to add. Each is added as soon as its counterpart is
            computed and is removed from the list, so that memory does not hold two complete sets.
    """
    if not (inputs and value.requires_grad):
        return _merged([None] * len(inputs), add_to)
    with nullcontext() if add_to is None else _accumulating(add_to, inputs), autocast_off(value.device):
        found = torch.autograd.grad(value, inputs, retain_graph=retain_graph, allow_unused=True)
    return _merged(found, add_to)


@contextmanager
def _accumulating(known: Gradients, inputs: Sequence[Tensor], *, factor: Tensor | None = None) -> Iterator[None]:
    """Make a backward inside the block return, for each input, its gradient plus the one in `known`.

    Args:
        known: A gradient or `None` per input; gradients that are used are replaced by `None`.
        inputs: The tensors to differentiate with respect to.
        factor: A 0-d tensor that multiplies the gradients of the backward.
    """

    def hook_of(index: int) -> Callable[[Tensor | None], Tensor | None]:
        def hook(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            before, known[index] = known[index], None
            scale = gradient.new_ones(()) if factor is None else factor.to(gradient.dtype)
            return scale * gradient if before is None else before.addcmul(scale, gradient)

        return hook

    with ExitStack() as hooks:
        for index, x in enumerate(inputs):
            hooks.enter_context(x.register_hook(hook_of(index)))
        yield


def _merged(found: Sequence[Tensor | None], known: Gradients | None) -> Gradients:
    """Return the gradients in `found`, and those in `known` where there is none."""
    return [y if x is None else x for x, y in zip(found, known or [None] * len(found), strict=True)]


def with_gradients(value: Scalar, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Scalar:
    """Return `value` without its graph; `backward()` on it passes each input its gradient from `gradients`."""
    return PrecomputedGrad.apply(value.detach(), len(inputs), *inputs, *gradients)


class PrecomputedGrad(torch.autograd.Function):
    """The identity on a scalar, with gradients that were computed before."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, num_inputs: int, *inputs_and_gradients: Tensor | None) -> Tensor:
        """Keep the gradients."""
        inputs, gradients = inputs_and_gradients[:num_inputs], inputs_and_gradients[num_inputs:]
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs if x is not None]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients."""
        scaled = [
            None if gradient is None else (grad_output * gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (None, None, *scaled, *[None] * len(scaled))


def with_gradient_hook(x: Tensor, hook: Callable[[Tensor], None] | None) -> Tensor:
    """Return `x` as a view; `hook` is called with the gradient that flows back through this view."""
    if hook is None or not x.requires_grad:
        return x
    view = x.view_as(x)
    view.register_hook(hook)
    return view


# One backward through a discriminator for both steps. Both differentiate the same logits with respect to the same
# input and parameters, with different cotangents. With one logit per sample, and samples that do not depend on each
# other, the input gradient of a sample is its logit's cotangent times a factor that both steps share: the gradient
# computed for one step is scaled to be the other's.


def can_share_backward(discriminator: nn.Module, logits: Tensor, x: Tensor) -> bool:
    """Return whether `shared_backward` applies: independent samples, one logit each, and no float16 cotangents."""
    is_independent = getattr(discriminator, "samples_are_independent", False)
    return is_independent and logits.ndim == 1 and logits.dtype != torch.float16 and x.requires_grad


def shared_backward(
    gan_loss: GANLoss,
    logits: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    *,
    retain_graph: bool,
    add_to: Gradients | None = None,
) -> tuple[Tensor, Gradients]:
    """Return the gradient of the generator's loss for `x`, and of the discriminator's fake part for its parameters.

    Args:
        gan_loss: A separable loss whose generator's part does not use the real logits.
        logits: `(B,)`, of the reconstructions.
        x: The discriminator's input `(B, ...)`.
        parameters: The discriminator's.
        retain_graph: Keep the graph of `logits`.
        add_to: Gradients per parameter to add, as in `gradients_of`.

    Returns:
        A gradient of `x`'s shape, and one per parameter, `None` where the logits do not depend on it.
    """
    generator_cotangent, discriminator_cotangent = cotangents(gan_loss, logits)
    tiny = TINY_COTANGENT * generator_cotangent
    used = torch.where(discriminator_cotangent.abs() >= tiny.abs(), discriminator_cotangent, tiny)
    # If all cotangents are tiny, rounding hides none of them: the parameters' gradients are then 0.
    factor = (discriminator_cotangent != 0).any()
    known: Gradients = [None] * len(parameters) if add_to is None else add_to
    with _accumulating(known, parameters, factor=factor), autocast_off(logits.device):
        grad_x, *grad_parameters = torch.autograd.grad(
            logits, [x, *parameters], grad_outputs=used, retain_graph=retain_graph, allow_unused=True
        )
    # Where `used` is 0, both cotangents are.
    scale = torch.where(used == 0, 0.0, generator_cotangent.to(x.dtype) / used.to(x.dtype))
    return grad_x * scale.view(-1, *[1] * (x.ndim - 1)), _merged(grad_parameters, known)


def cotangents(gan_loss: GANLoss, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the generator's and of the discriminator's loss with respect to the fake logits."""
    leaf = logits.detach().requires_grad_()
    losses = gan_loss(real=leaf.detach(), fake=leaf)
    (generator,) = torch.autograd.grad(losses.generator, leaf, retain_graph=True)
    (discriminator,) = torch.autograd.grad(losses.discriminator, leaf)
    return generator, discriminator
