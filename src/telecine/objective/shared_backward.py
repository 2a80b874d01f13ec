"""One backward of a discriminator for both steps: with two, an update without a penalty took 13 to 20 % longer.

Measured on one CPU thread with two clips of 9 x 64 x 64: 3.5 and 4.2 s with `Discriminator3DWithfirstframe(dim=16)`,
0.91 and 1.03 s with `Discriminator3D(dim=8)`. `samples_are_independent = False` turns it off.
"""

import torch
from torch import Tensor

from telecine.base.shapes import Scalar
from telecine.objective.bound_discriminator import BoundDiscriminator
from telecine.ops.eager_gradients import GradientSum


def can_share_backward(d: BoundDiscriminator, logits: Tensor, x: Tensor) -> bool:
    """Return whether `shared_backward` applies: independent samples, one logit each, and no float16 logits.

    It does not for a map of logits, as discriminators of patches return it: a sample's input gradient then depends on
    the gradients at several logits.

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
    """Return the gradient of the generator's loss for `x`, and add the gradients of the discriminator's to a sum.

    One backward computes both. With one logit `l_b` per sample `x_b`, and samples that do not depend on each other::

        d generator_loss / d x_b = (d generator_loss / d l_b) * (d l_b / d x_b)
        d discriminator_loss / d parameters = sum_b (d discriminator_loss / d l_b) * (d l_b / d parameters)

    The backward starts from the discriminator's gradients at the logits, so its gradients of the parameters are right.
    The gradient of `x_b` is scaled by the quotient of the generator's and the discriminator's gradient at `l_b`.

    Where the discriminator's gradient is 0, as beyond the margin of the hinge, 2^-40 of the generator's replaces it: a
    quotient by 0 would lose the generator's. For example, the hinge with the logits 0.5 and -3 of two reconstructions
    has the gradients 1/2 and 0 for the discriminator, -1/2 and -1/2 for the generator. The backward starts from 1/2 and
    -1/2^41, which vanishes in the rounding of the parameters' gradients. The quotients, -1 and 2^40, are exact.

    Args:
        generator_loss: The generator's loss, a function of `logits`.
        discriminator_loss: The fake part of the discriminator's loss, a function of `logits`.
        logits: `(B,)`, of the reconstructions.
        x: The input `(B, ...)` of the discriminator.
        gradient_sum: The sum of gradients of the discriminator's parameters.
        retain_graph: Keep the discriminator's graph for another backward.
    """
    # 1. The gradients of both losses at the logits.
    (generator_gradient,) = torch.autograd.grad(generator_loss, logits)
    (discriminator_gradient,) = torch.autograd.grad(discriminator_loss, logits)

    # 2. The backward starts from the discriminator's gradients, or from tiny ones in the place of 0.
    tiny = 2.0**-40 * generator_gradient
    is_large = discriminator_gradient.abs() >= tiny.abs()
    grad_logits = torch.where(is_large, discriminator_gradient, tiny)

    # 3. One backward through the discriminator. Without a gradient at any logit, its parameters have none.
    (grad_x,) = gradient_sum.backward(
        logits,
        grad_output=grad_logits,
        inputs=[x],
        zero_if=(discriminator_gradient == 0).all(),
        retain_graph=retain_graph,
    )
    assert grad_x is not None

    # 4. Scale the gradient of each sample to the generator's. Where `grad_logits` is 0, both gradients are.
    quotient = generator_gradient.to(x.dtype) / grad_logits.to(x.dtype)
    scale = torch.where(grad_logits == 0, 0.0, quotient)
    return grad_x * scale.view(-1, *[1] * (x.ndim - 1))
