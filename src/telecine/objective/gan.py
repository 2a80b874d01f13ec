"""The GAN: the terms of the autoencoder's loss and of the discriminators' losses, from each discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from telecine.base.precision import autocast_off
from telecine.base.randomness import Generators
from telecine.base.shapes import Scalar, Video
from telecine.discriminators import DiscriminatorOutput
from telecine.losses import GANLoss, Penalty
from telecine.objective.bound_discriminator import BoundDiscriminator
from telecine.objective.functions import check_result
from telecine.objective.terms import LossTerm, TermValues
from telecine.objective.weights import Weights
from telecine.settings import Side


@dataclass(frozen=True)
class GANBatch:
    """What one call computes with discriminators: their inputs, and the terms whose weight is above 0 at this step."""

    sides: Sequence[Side]
    """Whose losses are computed."""
    discriminators: Sequence[BoundDiscriminator]
    real: Video
    """What they see as real, see `Batch`."""
    fake: Video
    """What they see as fake."""
    loss: GANLoss
    autoencoder_terms: Sequence[LossTerm]
    """The terms of the autoencoder's loss that are computed with a discriminator."""
    penalty: Penalty | None
    """The gradient penalty in each discriminator's loss; None in a step without one."""
    lecam: nn.ModuleDict | None
    """The `LeCam` regularisation of each discriminator by its key; None in a step without it."""
    weights: Weights
    """The weights of all terms at this step, and whether the discriminators train."""
    rng: Generators
    """The source of random numbers."""

    @property
    def has_double_backward(self) -> bool:
        """Whether this step has a penalty that differentiates a gradient of the discriminator."""
        return self.penalty is not None and self.penalty.double_backward

    def autoencoder_terms_of(self, d: BoundDiscriminator) -> list[LossTerm]:
        """Return the terms of the autoencoder's loss that are computed with a discriminator."""
        return [term for term in self.autoencoder_terms if d.is_needed_by(term.schedule)]

    def precision_of_discriminators(self) -> AbstractContextManager[None]:
        """Return the context of the discriminators' step: a double backward, and its logits, need float32."""
        if self.has_double_backward:
            return autocast_off(self.real.device)
        return nullcontext()


def compute_generator_terms(
    d: BoundDiscriminator, gan: GANBatch, *, d_fake: DiscriminatorOutput, frame_indices: Tensor
) -> TermValues:
    """Return the terms of the autoencoder's loss from one discriminator, by name.

    Args:
        d: The discriminator. It is evaluated on the real clips, without a graph, if a term reads its output for them.
        gan: The terms that count at this step.
        d_fake: Its output for the reconstructions.
        frame_indices: The frame of each clip that a discriminator of frames sees, `(B, 1)`.
    """
    terms = gan.autoencoder_terms_of(d)
    inputs: dict[str, object] = {"fake_logits": d_fake.logits, "fake_features": d_fake.features}
    if any(name in ("real_logits", "real_features") for term in terms for name in term.arguments):
        with torch.no_grad():
            d_real = d(d.input_of(gan.real, frame_indices))
        inputs |= {"real_logits": d_real.logits, "real_features": d_real.features}
    return {term.name: term(**inputs) for term in terms}


class DiscriminatorTerms(NamedTuple):
    """The terms of one discriminator's loss, or of its real or its fake part, and the logits of that."""

    gan_loss: Scalar
    regularisers: TermValues
    """The other terms: "grad_penalty" and "lecam", if they are on."""
    real_logits: Tensor | None
    fake_logits: Tensor | None

    def weighted_sum(self, weights: Weights) -> Scalar:
        """Return the GAN loss, plus each other term times its weight."""
        return self.gan_loss + weights.sum(self.regularisers)

    def detached(self) -> DiscriminatorTerms:
        """Return the same values without their graphs."""
        return DiscriminatorTerms(
            self.gan_loss.detach(),
            {name: term.detach() for name, term in self.regularisers.items()},
            None if self.real_logits is None else self.real_logits.detach(),
            None if self.fake_logits is None else self.fake_logits.detach(),
        )


def compute_discriminator_terms(
    d: BoundDiscriminator, gan: GANBatch, *, fake: Tensor | None, real: Tensor | None
) -> DiscriminatorTerms:
    """Return the terms of one discriminator's loss.

    With one of the inputs, these are the real part or the fake part of a separable loss. The penalty is in the real
    part.

    Args:
        d: The discriminator.
        gan: The terms that count at this step.
        fake: What the discriminator sees of the reconstructions, or None.
        real: What it sees of the real clips, or None.
    """
    penalty = gan.penalty if real is not None else None
    double_backward = penalty is not None and penalty.double_backward
    real_logits: Tensor | None = None
    fake_logits: Tensor | None = None
    if real is not None:
        real = real.detach()
        if penalty is not None and penalty.differentiates("real"):
            real.requires_grad_()
        real_logits = d(real, double_backward=double_backward).logits
    if fake is not None:
        fake = fake.detach()
        if penalty is not None and penalty.differentiates("fake"):
            fake.requires_grad_()
        fake_logits = d(fake, double_backward=double_backward).logits
    gan_loss = gan.loss.compute_discriminator_loss(real_logits=real_logits, fake_logits=fake_logits)
    regularisers: TermValues = {}
    if penalty is not None:
        value = penalty(
            discriminator=lambda x: d(x, double_backward=double_backward).logits,
            real=real,
            fake=fake,
            real_logits=real_logits,
            fake_logits=fake_logits,
            generator=gan.rng,
        )
        regularisers["grad_penalty"] = check_result(penalty.function, value)
    if gan.lecam is not None:
        assert real_logits is not None
        assert fake_logits is not None
        regularisers["lecam"] = gan.lecam[d.key](real=real_logits, fake=fake_logits)
    return DiscriminatorTerms(gan_loss, regularisers, real_logits, fake_logits)
