"""What the discriminator and the generator lose to each other, as functions of the logits.

The hinge losses are those of Geometric GAN (Lim & Ye, arXiv:1705.02894), equations of its section 3, and of
"Spectral Normalization for GANs" (Miyato et al., arXiv:1802.05957), equations 16 and 17.
"""

from __future__ import annotations

from torch import Tensor

from telecine.precision import at_least_float32
from telecine.shapes import Scalar


def hinge_discriminator(*, real: Tensor, fake: Tensor) -> Scalar:
    """Return `mean(relu(1 - real)) + mean(relu(1 + fake))`.

    Args:
        real: Logits of real samples, any shape.
        fake: Logits of reconstructions, any shape, which may differ from that of `real`.

    Returns:
        A 0-d tensor >= 0; 2 where all logits are 0, 0 where the discriminator separates by the whole margin.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def hinge_generator(*, fake: Tensor) -> Scalar:
    """Return `-mean(fake)`, unbounded: smaller means that the discriminator takes the fakes for real."""
    return -at_least_float32(fake).mean()
