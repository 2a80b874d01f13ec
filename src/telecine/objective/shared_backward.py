"""One backward through a discriminator that serves the autoencoder's step and its own.

Both steps differentiate the same logits of the reconstructions, with other cotangents. With one logit a sample, and
samples that do not see each other, the gradient for a sample's pixels is its logit's cotangent times something that
both steps share: what was computed for one is scaled to be the other's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from telecine.losses import GANLoss
from telecine.objective.carry import Gradients, added_to, or_else
from telecine.precision import autocast_off

# A logit that the discriminator's loss ignores, as the hinge does one that is right by far, still pulls the
# autoencoder. It goes through the backward as a cotangent so small that what it adds to the discriminator's gradients
# lies below their last digit, and is scaled up afterwards: exactly, since this is a power of two.
FAINT = 2.0**-40


def can_share(module: nn.Module, logits: Tensor, view: Tensor) -> bool:
    """Say whether one backward can serve both steps: samples are independent, with a logit each, and no cotangent
    leaves the range of its type.
    """
    independent = getattr(module, "samples_are_independent", False)
    return independent and logits.ndim == 1 and logits.dtype != torch.float16 and view.requires_grad


def shared_backward(
    gan_loss: GANLoss,
    logits: Tensor,
    view: Tensor,
    parameters: Sequence[Tensor],
    *,
    retain_graph: bool,
    onto: Gradients | None = None,
) -> tuple[Tensor, Gradients]:
    """Return the generator's gradient for `view`, and the discriminator's of the fake part of its loss.

    Args:
        gan_loss: Whose discriminator's loss is a part of the real logits plus a part of the fake ones, and whose
            generator's loss does not look at the real ones.
        logits: `(B,)`, of the reconstructions.
        view: What they were computed from, `(B, ...)`.
        parameters: The discriminator's.
        retain_graph: Whether the graph of `logits` is needed afterwards.
        onto: Gradients of the parameters which the discriminator's are added to; they leave the list.

    Returns:
        A gradient of `view`'s shape, and one for each parameter, None where the logits do not depend on it.
    """
    of_generator, of_discriminator = cotangents(gan_loss, logits)
    faint = FAINT * of_generator
    used = torch.where(of_discriminator.abs() >= faint.abs(), of_discriminator, faint)
    # Where every logit is faint, nothing else is there to hide it.
    counts = (of_discriminator != 0).any()
    known: Gradients = [None] * len(parameters) if onto is None else onto
    with added_to(known, parameters, counts=counts), autocast_off(logits.device):
        of_view, *of_parameters = torch.autograd.grad(
            logits, [view, *parameters], grad_outputs=used, retain_graph=retain_graph, allow_unused=True
        )
    # Where `used` is 0, both are.
    scale = torch.where(used == 0, 0.0, of_generator.to(view.dtype) / used.to(view.dtype))
    return of_view * scale.view(-1, *[1] * (view.ndim - 1)), or_else(of_parameters, known)


def cotangents(gan_loss: GANLoss, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the generator's and of the discriminator's loss by the fake logits."""
    leaf = logits.detach().requires_grad_()
    duel = gan_loss(real=leaf.detach(), fake=leaf)
    (of_generator,) = torch.autograd.grad(duel.generator, leaf, retain_graph=True)
    (of_discriminator,) = torch.autograd.grad(duel.discriminator, leaf)
    return of_generator, of_discriminator
