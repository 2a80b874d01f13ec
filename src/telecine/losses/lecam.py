"""LeCam regularisation: the discriminator's logits are held back by what the other side's logits have been."""

from __future__ import annotations

from torch import Tensor

from telecine.precision import at_least_float32
from telecine.shapes import Scalar


def lecam(*, real: Tensor, fake: Tensor, real_average: Scalar, fake_average: Scalar) -> Scalar:
    """Return `mean(relu(real - fake_average)^2) + mean(relu(real_average - fake)^2)`; the graph of the logits is kept.

    Tseng et al. (arXiv:2104.03310), equation 3 with their code's relu: a logit is drawn towards the moving average of
    the other side, but only down from above it (real) or up from below it (fake). It slows down a discriminator that
    has learned its few samples by heart, and does nothing to one that takes real and fake the wrong way round.

    Args:
        real: Logits of real samples, any shape.
        fake: Logits of reconstructions, any shape.
        real_average: Moving average of the mean of `real` over past steps, 0-d; no gradient reaches it.
        fake_average: Moving average of the mean of `fake`, likewise.

    Returns:
        A 0-d tensor >= 0, at least float32; it belongs to the discriminator's loss.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    alpha_r, alpha_f = at_least_float32(real_average).detach(), at_least_float32(fake_average).detach()
    # Equation 3
    return (real - alpha_f).relu().square().mean() + (alpha_r - fake).relu().square().mean()
