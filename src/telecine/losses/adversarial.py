"""What the discriminator and the generator lose to each other, as functions of the logits.

One function is one GAN loss, with both sides of it. Larger logits mean "more real" in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.precision import at_least_float32
from telecine.shapes import Scalar, argument_error


class Duel(NamedTuple):
    """What both sides lose: 0-d tensors in at least float32, each with its graph; each side minimises its own."""

    discriminator: Scalar
    generator: Scalar


GANLoss: TypeAlias = Callable[..., Duel]


def hinge(*, real: Tensor, fake: Tensor) -> Duel:
    """Return the hinge losses.

    Those of Geometric GAN (Lim & Ye, arXiv:1705.02894), section 3, and of spectral normalisation (Miyato et al.,
    arXiv:1802.05957), equations 16 and 17.

    Args:
        real: Logits of real samples, any shape.
        fake: Logits of reconstructions, any shape, which may differ from that of `real`.

    Returns:
        The discriminator's is >= 0: 2 where all logits are 0, 0 where it separates by the whole margin. The
        generator's is unbounded: the smaller, the more the discriminator takes the fakes for real.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    return Duel(
        discriminator=(1 - real).relu().mean() + (1 + fake).relu().mean(),  # equation 16
        generator=-fake.mean(),  # equation 17
    )


def vanilla(*, real: Tensor, fake: Tensor) -> Duel:
    """Return the losses of the first GAN (Goodfellow et al., arXiv:1406.2661), the generator's not saturating.

    The discriminator's is the negative of equation 1. The generator maximises log D(G(z)) instead of minimising
    log(1 - D(G(z))), as section 3 advises: its gradient does not vanish where the discriminator wins.

    Args:
        real: Logits of real samples, any shape: D is their sigmoid.
        fake: Logits of reconstructions, any shape.

    Returns:
        Both in nats and >= 0; 2 log 2 and log 2 where all logits are 0.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    # -log(sigmoid(x)) = softplus(-x) and -log(1 - sigmoid(x)) = softplus(x), without the overflow.
    return Duel(
        discriminator=F.softplus(-real).mean() + F.softplus(fake).mean(),
        generator=F.softplus(-fake).mean(),
    )


def least_squares(*, real: Tensor, fake: Tensor) -> Duel:
    """Return the losses of LSGAN (Mao et al., arXiv:1611.04076), equation 9: labels 0 and 1, with the factors 1/2.

    Args:
        real: Logits of real samples, any shape.
        fake: Logits of reconstructions, any shape.

    Returns:
        Both >= 0; 1/2 each where all logits are 0. The discriminator's is 0 where it says 1 and 0, the generator's
        where its fakes are said to be 1.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    # Equation 9
    return Duel(
        discriminator=0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean(),
        generator=0.5 * (fake - 1).square().mean(),
    )


def relativistic(*, real: Tensor, fake: Tensor) -> Duel:
    """Return the losses of relativistic pairing: only how much more real the real one looks than its partner counts.

    R3GAN (Huang et al., arXiv:2501.05441) with the loss of RSGAN (Jolicoeur-Martineau, arXiv:1807.00734). The pairs
    are those of the batch: each clip and its reconstruction, or the patches of both at the same place.

    Args:
        real: Logits of real samples, any shape.
        fake: Logits of their reconstructions, of the same shape.

    Returns:
        Both in nats and >= 0, log 2 where all pairs are equal; one falls as the other rises.

    Raises:
        ValueError: If the shapes differ, so that there are no pairs.
    """
    if fake.shape != real.shape:
        contract = f"of `real`'s shape {tuple(real.shape)}"
        raise argument_error("fake", contract, fake, "Show the discriminator as many real samples as fakes.")
    lead = at_least_float32(real) - at_least_float32(fake)
    return Duel(discriminator=F.softplus(-lead).mean(), generator=F.softplus(lead).mean())


GAN_LOSSES: dict[str, GANLoss] = {
    "hinge": hinge,
    "vanilla": vanilla,
    "least_squares": least_squares,
    "relativistic": relativistic,
}


def generator_needs_real(gan_loss: GANLoss) -> bool:
    """Say whether the generator's loss depends on the logits of real samples, which then have to be computed for it.

    Found out by calls with other real logits: NaN, which arithmetic carries into whatever depends on them, and values
    on both sides of the fake ones, for comparisons. They run on the CPU, so nothing waits for a device.
    """
    fake = torch.linspace(-2.3, 2.1, 6, device="cpu")
    with torch.no_grad():
        unknown, low, high = (
            gan_loss(real=torch.full_like(fake, real), fake=fake).generator for real in (torch.nan, -3.7, 2.9)
        )
    return not (bool(torch.isfinite(unknown)) and torch.equal(unknown, low) and torch.equal(unknown, high))


def is_separable(gan_loss: GANLoss) -> bool:
    """Say whether the discriminator's loss is a part of the real logits plus a part of the fake ones.

    Each part's gradient can then be taken without the other side's logits. Found out by trying whether either gradient
    changes with the other side's logits, on the CPU.
    """
    return all(_gradient_stays(gan_loss, *sides) for sides in (("real", "fake"), ("fake", "real")))


def _gradient_stays(gan_loss: GANLoss, side: str, other: str) -> bool:
    own = torch.linspace(-2.3, 2.1, 6, device="cpu", dtype=torch.float64, requires_grad=True)
    others = [torch.zeros_like(own), torch.linspace(3.7, -2.9, 6, device="cpu", dtype=torch.float64)]
    with torch.enable_grad():
        losses = [gan_loss(**{side: own, other: logits.detach()}).discriminator for logits in others]
        first, second = (torch.autograd.grad(loss, own)[0] for loss in losses)
    return torch.equal(first, second)
