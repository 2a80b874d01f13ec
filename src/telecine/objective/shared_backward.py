"""One backward of a discriminator for both steps: with two, an update without a penalty took 20 % longer.

Measured with `Discriminator3DWithfirstframe(dim=16)`, two clips of 9 x 64 x 64 and one CPU thread: 3.5 and 4.2 s, the
latter with `samples_are_independent = False`, which turns it off.
"""

import torch
from torch import Tensor

from telecine.base.shapes import Scalar
from telecine.objective.bound_discriminator import BoundDiscriminator
from telecine.objective.early_gradients import GradientSum


def can_share_backward(d: BoundDiscriminator, logits: Tensor, x: Tensor) -> bool:
    """Return whether `shared_backward` applies: independent samples, one logit each, and no float16 cotangents.

    It does not for a map of logits, as the discriminators "patch" and "features" return it: a sample's input gradient
    then depends on several cotangents.

    Args:
        d: The discriminator.
        logits: Its output.
        x: Its input.
    """
    is_independent = getattr(d.module, "samples_are_independent", False)
    return is_independent and logits.ndim == 1 and logits.dtype != torch.float16 and x.requires_grad


def shared_backward(
    generator_loss: Scalar,
    discriminator_loss: Scalar,
    logits: Tensor,
    x: Tensor,
    gradient_sum: GradientSum,
    *,
    retain_graph: bool,
) -> Tensor:
    """Return the gradient of the generator's loss for `x`, and add those of the discriminator's fake part to a sum.

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
        gradient_sum: The sum of gradients of the discriminator's parameters.
        retain_graph: Keep the discriminator's graph for another backward.
    """
    (generator_cotangent,) = torch.autograd.grad(generator_loss, logits)
    (discriminator_cotangent,) = torch.autograd.grad(discriminator_loss, logits)
    cotangent = _without_zeros(discriminator_cotangent, generator_cotangent)
    # If all of the discriminator's cotangents are 0, the parameters' gradients are 0, and not that of tiny cotangents.
    is_any_not_0 = (discriminator_cotangent != 0).any()
    (grad_x,) = gradient_sum.add(
        logits, cotangent=cotangent, inputs=[x], factor=is_any_not_0, retain_graph=retain_graph
    )
    assert grad_x is not None
    # Where `cotangent` is 0, both are.
    quotient = generator_cotangent.to(x.dtype) / cotangent.to(x.dtype)
    scale = torch.where(cotangent == 0, 0.0, quotient)
    return grad_x * scale.view(-1, *[1] * (x.ndim - 1))


def _without_zeros(cotangent: Tensor, other: Tensor) -> Tensor:
    """Return `cotangent`, and `other / 2^40` where it is larger than that: a quotient by 0 would lose `other`.

    For example, the hinge with the logits 0.5 and -3 of two reconstructions: the discriminator's cotangents are 1/2
    and, beyond the margin, 0; those of the generator are -1/2 and -1/2. Returned are 1/2 and -1/2^41. The second one
    vanishes in the rounding of a sum with the first one, as in the parameters' gradients. The quotients by which the
    inputs' gradients are scaled, -1 and 2^40, are exact.
    """
    tiny = 2.0**-40 * other
    return torch.where(cotangent.abs() >= tiny.abs(), cotangent, tiny)
