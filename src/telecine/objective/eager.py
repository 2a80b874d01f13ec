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
from telecine.losses import GANLoss

# A logit without a gradient in the discriminator's loss, as with the hinge beyond its margin, still has one in the
# generator's. It goes through the shared backward with a cotangent so small that it vanishes in the rounding of the
# discriminator's gradients, and the input's gradient is scaled up afterwards: exactly, since this is a power of two.
_TINY_COTANGENT = 2.0**-40

# The gradients of several terms are taken through one graph, so compiled code must keep its buffers after the first.
torch._functorch.config.donated_buffer = False

Gradients: TypeAlias = list[Tensor | None]


def eager_backward(
    terms: Callable[[Tensor], Mapping[str, Scalar]], x: Tensor, parameters: Sequence[Tensor] = ()
) -> dict[str, Scalar]:
    """Return the scalars `terms(x)` by name, with their gradients for `x` and `parameters` already computed.

    `terms` is called once, with a detached copy of `x` in at least float32; gradients for all else are lost. Memory
    is that of one call at the peak; each scalar keeps a gradient of `x`'s shape. Without gradients it is a plain call.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return dict(terms(x))
    # In float32: a half-precision gradient would underflow before it meets the loss scale.
    leaf = at_least_float32(x.detach()).requires_grad_()
    values = dict(terms(leaf))
    attached = [name for name, value in values.items() if value.requires_grad]
    inputs = [leaf, *parameters]
    gradients = {name: gradients_of(values[name], inputs, retain_graph=name != attached[-1]) for name in attached}
    return {
        name: with_gradients(value, [x, *parameters], gradients[name]) if name in gradients else value
        for name, value in values.items()
    }


def gradients_of(
    value: Scalar, inputs: Sequence[Tensor], *, retain_graph: bool = False, add_to: Gradients | None = None
) -> Gradients:
    """Return the gradient of `value` for each input, `None` where it does not depend on the input.

    Autocast is off meanwhile, as in a caller's `backward()`. `add_to` are gradients of another scalar, one per input,
    to add. Each is added, and leaves the list, when its counterpart is computed: memory never holds two complete sets.
    """
    known = add_to or [None] * len(inputs)
    if not (inputs and value.requires_grad):
        return known
    with nullcontext() if add_to is None else _accumulating(known, inputs), autocast_off(value.device):
        found = torch.autograd.grad(value, inputs, retain_graph=retain_graph, allow_unused=True)
    return [before if gradient is None else gradient for gradient, before in zip(found, known, strict=True)]


@contextmanager
def _accumulating(known: Gradients, inputs: Sequence[Tensor], *, factor: Tensor | None = None) -> Iterator[None]:
    """Make a backward inside the block return, for each input, its gradient times `factor` plus the one in `known`.

    A gradient in `known`, which may be `None`, is replaced by `None` when it is used.
    """

    def add(index: int, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        before, known[index] = known[index], None
        if factor is None:
            return gradient if before is None else before + gradient
        scale = factor.to(gradient.dtype)
        return scale * gradient if before is None else before.addcmul(scale, gradient)

    with ExitStack() as hooks:
        for index, x in enumerate(inputs):
            hooks.enter_context(x.register_hook(partial(add, index)))
        yield


def with_gradients(value: Scalar, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Scalar:
    """Return `value` without its graph; `backward()` on it passes each input its gradient from `gradients`."""
    return _PrecomputedGrad.apply(value.detach(), len(inputs), *inputs, *gradients)


class _PrecomputedGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, num_inputs: int, *inputs_and_gradients: Tensor | None) -> Tensor:
        inputs, gradients = inputs_and_gradients[:num_inputs], inputs_and_gradients[num_inputs:]
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs if x is not None]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # `create_graph=True`
            remedy = "Build the loss with `eager_gradients=False`."
            raise argument_error("eager_gradients", "False for second derivatives", "True", remedy, RuntimeError)
        known = [gradient for gradient in ctx.saved_tensors if gradient is not None]
        products = iter(torch._foreach_mul(known, grad_output) if known else ())
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if gradient is None else next(products).to(dtype) for gradient, dtype in pairs]
        return (None, None, *scaled, *[None] * len(scaled))


# One backward through a discriminator for both steps. Both differentiate the same logits with respect to the same
# input and parameters, with different cotangents. With one logit per sample, and samples that do not depend on each
# other, the input gradient of a sample is its logit's cotangent times a factor that both steps share: the gradient
# computed for one step is scaled to be the other's.


def shared_backward(
    gan_loss: GANLoss, logits: Tensor, x: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool, add_to: Gradients
) -> tuple[Tensor, Gradients]:
    """Return the gradient of the generator's loss for `x`, and of the discriminator's fake part for its parameters.

    Those in `add_to`, one per parameter, are added to the latter as in `gradients_of`. `gan_loss` is separable, and its
    generator's part does not use the real logits. `logits` `(B,)` are those of the reconstructions; `x` is the input
    `(B, ...)` of the discriminator with these parameters.
    """
    generator_cotangent, discriminator_cotangent = _cotangents(gan_loss, logits)
    tiny = _TINY_COTANGENT * generator_cotangent
    used = torch.where(discriminator_cotangent.abs() >= tiny.abs(), discriminator_cotangent, tiny)
    # If all cotangents are tiny, rounding hides none of them: the parameters' gradients are then 0.
    factor = (discriminator_cotangent != 0).any()
    with _accumulating(add_to, parameters, factor=factor), autocast_off(logits.device):
        grad_x, *grad_parameters = torch.autograd.grad(
            logits, [x, *parameters], grad_outputs=used, retain_graph=retain_graph, allow_unused=True
        )
    # Where `used` is 0, both cotangents are.
    scale = torch.where(used == 0, 0.0, generator_cotangent.to(x.dtype) / used.to(x.dtype))
    gradients: Gradients = [old if new is None else new for new, old in zip(grad_parameters, add_to, strict=True)]
    return grad_x * scale.view(-1, *[1] * (x.ndim - 1)), gradients


def _cotangents(gan_loss: GANLoss, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the generator's and of the discriminator's loss with respect to the fake logits."""
    leaf = logits.detach().requires_grad_()
    losses = gan_loss(real=leaf.detach(), fake=leaf)
    (generator,) = torch.autograd.grad(losses.generator, leaf, retain_graph=True)
    (discriminator,) = torch.autograd.grad(losses.discriminator, leaf)
    return generator, discriminator
