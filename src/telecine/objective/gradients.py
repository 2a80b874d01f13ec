"""How the gradients of the GAN's losses are taken: through the graph, or eagerly.

Each way computes the terms of `gan.py`, with the same values and gradients. `choose_gradients` selects one. An eager
way computes gradients together with values, and frees the graph at once.
"""

from enum import Enum, auto
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from telecine.base.precision import autocast_dtype
from telecine.base.shapes import Scalar
from telecine.discriminators import frozen
from telecine.losses import JointGANLoss
from telecine.losses.perceptual import sample_frame_indices
from telecine.objective.bound_discriminator import BoundDiscriminator
from telecine.objective.gan import (
    DiscriminatorTerms,
    GANBatch,
    compute_discriminator_terms,
    compute_generator_terms,
)
from telecine.objective.shared_backward import can_share_backward, shared_backward
from telecine.objective.terms import TermValues
from telecine.ops.eager_gradients import (
    GradientSum,
    attach_gradients,
    detached_leaf,
    differentiate,
    eager_backward,
    precompute_gradients,
)

GeneratorLosses: TypeAlias = dict[str, dict[str, Scalar]]
"""The terms of the autoencoder's loss by the term's name, then by the discriminator's."""


class DiscriminatorLoss(NamedTuple):
    """The loss of one discriminator."""

    loss: Scalar
    terms: DiscriminatorTerms
    """Detached."""


class DiscriminatorGradients(Enum):
    """How the gradients of the discriminators' losses are taken.

    Figures are extra peak memory and time of an update on one CPU thread, from
    `benchmarks/results/2026-12-01-gan-gradients.md`.
    """

    THROUGH_GRAPH = auto()
    """By the caller's `backward()`."""
    EAGER_WHOLE = auto()
    """Eagerly, of the whole loss: its real part and its fake part depend on each other. The graph of one discriminator
    exists at a time, and none during the autoencoder's backward: for three with the relativistic loss and "r1_and_r2"
    319 instead of 456 MB, in the same time. For a single one it depends on the autoencoder: 8.4 instead of 9.9 GB for
    Wan 2.1 with LeCam, but 261 instead of 246 MB for a small one, whose graph is there during the double backward."""
    EAGER_PARTS = auto()
    """Eagerly, of the real part of the loss, then of the fake part. The graph of one part exists at a time: for one
    discriminator with the hinge loss 125 MB, as a whole 149 MB, in the same time."""
    ONE_PASS = auto()
    """As `EAGER_PARTS`, where one pass of a discriminator over the reconstructions serves both steps of an update: with
    the hinge loss an update took 1.03 instead of 1.15 s, and 0.91 s with `shared_backward`."""


def choose_gradients(gan: GANBatch, *, eager: bool) -> DiscriminatorGradients:
    """Return how to take the gradients of the discriminators' losses: with least memory and time, where it is correct.

    With a double backward, `GANBatch.precision_of_discriminators` turns autocast off in the discriminators' step, and
    leaves it on in the autoencoder's. With `penalty.every` above 1, some steps have one and some do not. The first
    reason below decides.

    Args:
        gan: What a call computes with discriminators.
        eager: `ObjectiveConfig.eager_gradients`. Without it, all gradients are taken through the graph.
    """
    if not eager:
        return DiscriminatorGradients.THROUGH_GRAPH

    # With a double backward the discriminators compute in float32, where eager gradients do not underflow.
    autocast = autocast_dtype(gan.fake.device)
    if autocast == torch.float16 and not gan.has_double_backward:
        return DiscriminatorGradients.THROUGH_GRAPH

    # Hooks on parameters would run for eager gradients and again in the caller's backward.
    for d in gan.discriminators:
        if any(parameter._backward_hooks for parameter in d.module.parameters()):
            return DiscriminatorGradients.THROUGH_GRAPH

    # A joint GAN loss compares real with fake logits; LeCam and some penalties read both, too.
    penalty_reads_fake = gan.penalty is not None and gan.penalty.reads_fake
    if isinstance(gan.loss, JointGANLoss) or gan.lecam is not None or penalty_reads_fake:
        return DiscriminatorGradients.EAGER_WHOLE

    # One pass serves both steps only if the call computes both, and both take gradients of it.
    are_both_computed = "autoencoder" in gan.sides and "discriminators" in gan.sides
    both_train = (
        gan.fake.requires_grad and gan.weights.discriminators_train and torch.is_grad_enabled()
    )
    if not (are_both_computed and both_train):
        return DiscriminatorGradients.EAGER_PARTS

    # Under autocast a double backward makes the precision of the steps differ.
    if autocast is not None and gan.has_double_backward:
        return DiscriminatorGradients.EAGER_PARTS
    return DiscriminatorGradients.ONE_PASS


def compute_gan_losses(
    gan: GANBatch, how: DiscriminatorGradients, *, autoencoder_is_eager: bool
) -> tuple[GeneratorLosses, dict[str, DiscriminatorLoss]]:
    """Compute the losses of `gan.sides`. For another side there are none.

    Args:
        gan: What a call computes with discriminators.
        how: How the gradients of the discriminators' losses are taken.
        autoencoder_is_eager: Whether terms of the autoencoder's loss compute gradients together with values.

    Returns:
        The terms of the autoencoder's loss, from which discriminators get no gradient, and the loss of each
        discriminator that trains at this step, from which the autoencoder gets none.
    """
    generator_frames, discriminator_frames = _draw_frames(gan)
    generator_losses: GeneratorLosses = {term.name: {} for term in gan.autoencoder_terms}
    discriminator_losses: dict[str, DiscriminatorLoss] = {}
    for d in gan.discriminators:
        terms: TermValues = {}
        frames = generator_frames.get(d.name)
        if frames is not None and how is DiscriminatorGradients.ONE_PASS:
            with gan.precision_of_discriminators():
                terms, discriminator_losses[d.name] = _one_pass(d, gan, frames)
        else:
            how_alone = how
            if how is DiscriminatorGradients.ONE_PASS:
                # No term of the autoencoder's loss is on for this discriminator: a pass would serve one step alone.
                how_alone = DiscriminatorGradients.EAGER_PARTS
            if frames is not None:
                terms = _generator_terms(d, gan, frames, is_eager=autoencoder_is_eager)
            if discriminator_frames is not None and gan.weights.discriminators_train:
                with gan.precision_of_discriminators():
                    discriminator_losses[d.name] = _discriminator_loss(
                        d, gan, discriminator_frames, how_alone
                    )
        for name, term in terms.items():
            generator_losses[name][d.name] = term
    return generator_losses, discriminator_losses


def _draw_frames(gan: GANBatch) -> tuple[dict[str, Tensor], Tensor | None]:
    """Draw the frame of each clip that a discriminator of frames sees, `(B, 1)`.

    All are drawn before any loss is computed, also for discriminators of videos, and while none trains: later random
    numbers do not depend on it.

    Returns:
        Those for terms of the autoencoder's loss, by the name of each discriminator that such a term needs; and those
        for the losses of all discriminators, None if these are not computed.
    """
    generator_frames: dict[str, Tensor] = {}
    if "autoencoder" in gan.sides:
        for d in gan.discriminators:
            if gan.autoencoder_terms_of(d):
                generator_frames[d.name] = sample_frame_indices(gan.real, 1, gan.rng)
    discriminator_frames: Tensor | None = None
    if "discriminators" in gan.sides:
        discriminator_frames = sample_frame_indices(gan.real, 1, gan.rng)
    return generator_frames, discriminator_frames


def _generator_terms(
    d: BoundDiscriminator, gan: GANBatch, frame_indices: Tensor, *, is_eager: bool
) -> TermValues:
    """Return the terms of the autoencoder's loss from one discriminator, which gets no gradient."""

    def terms_of(fake: Tensor) -> TermValues:
        return compute_generator_terms(d, gan, d_fake=d(fake), frame_indices=frame_indices)

    fake = d.input_of(gan.fake, frame_indices)
    with frozen(d.module):
        return eager_backward(terms_of, fake) if is_eager else terms_of(fake)


def _discriminator_loss(
    d: BoundDiscriminator, gan: GANBatch, frame_indices: Tensor, how: DiscriminatorGradients
) -> DiscriminatorLoss:
    """Return the loss of one discriminator by itself: `how` is another way than `ONE_PASS`."""
    if how is DiscriminatorGradients.EAGER_PARTS:
        return _eager_parts(d, gan, frame_indices)
    terms = compute_discriminator_terms(
        d,
        gan,
        fake=d.input_of(gan.fake, frame_indices),
        real=d.input_of(gan.real, frame_indices),
    )
    total = terms.weighted_sum(gan.weights)
    if how is DiscriminatorGradients.EAGER_WHOLE:
        parameters = d.trained_parameters
        total = attach_gradients(total, parameters, differentiate(total, parameters))
    return DiscriminatorLoss(total, terms.detached())


def _eager_parts(d: BoundDiscriminator, gan: GANBatch, frame_indices: Tensor) -> DiscriminatorLoss:
    """Return the loss of one discriminator by itself, with gradients of its real part, then of its fake part."""
    real, gradient_sum = _eager_real_part(d, gan, frame_indices)
    fake = compute_discriminator_terms(d, gan, fake=d.input_of(gan.fake, frame_indices), real=None)
    gradient_sum.backward(fake.weighted_sum(gan.weights))
    return _sum_of_parts(gan, real, fake.detached(), gradient_sum)


def _one_pass(
    d: BoundDiscriminator, gan: GANBatch, frame_indices: Tensor
) -> tuple[TermValues, DiscriminatorLoss]:
    """Return the terms of the autoencoder's loss from one discriminator, and its own loss, with their gradients.

    The fake part of its loss and the terms are computed from the output of one pass over the reconstructions.
    """
    real, gradient_sum = _eager_real_part(d, gan, frame_indices)

    # The pass, and what is computed from its output.
    fake = d.input_of(gan.fake, frame_indices)
    leaf = detached_leaf(fake)
    d_fake = d(leaf)
    logits = d_fake.logits
    fake_loss = gan.loss.compute_discriminator_loss(real_logits=None, fake_logits=logits)
    terms = compute_generator_terms(d, gan, d_fake=d_fake, frame_indices=frame_indices)
    del d_fake  # its features, which the last backward frees

    # The gradients: of the fake part for the parameters, of each term for the reconstructions.
    done: TermValues = {}
    generator_loss = terms.get(d.adversarial_term)
    if generator_loss is not None and can_share_backward(d, logits, leaf):
        del terms[d.adversarial_term]
        grad_fake = shared_backward(
            generator_loss,
            fake_loss,
            logits,
            leaf,
            gradient_sum,
            retain_graph=len(terms) > 0,
        )
        done[d.adversarial_term] = attach_gradients(generator_loss, [fake], [grad_fake])
    else:
        gradient_sum.backward(fake_loss, retain_graph=len(terms) > 0)
    done |= precompute_gradients(terms, leaves=[leaf], inputs=[fake])

    fake_part = DiscriminatorTerms(
        fake_loss.detach(), regularisers={}, real_logits=None, fake_logits=logits.detach()
    )
    return done, _sum_of_parts(gan, real, fake_part, gradient_sum)


def _eager_real_part(
    d: BoundDiscriminator, gan: GANBatch, frame_indices: Tensor
) -> tuple[DiscriminatorTerms, GradientSum]:
    """Return the terms of the real part of a discriminator's loss, detached, and the gradients of its parameters.

    It comes before the fake part: the penalty's double backward takes the most memory, and there are no other gradients
    yet. Its graph is freed before the next one is built.
    """
    gradient_sum = GradientSum(d.trained_parameters)
    real = compute_discriminator_terms(d, gan, fake=None, real=d.input_of(gan.real, frame_indices))
    gradient_sum.backward(real.weighted_sum(gan.weights))  # the double backward, too
    return real.detached(), gradient_sum


def _sum_of_parts(
    gan: GANBatch, real: DiscriminatorTerms, fake: DiscriminatorTerms, gradient_sum: GradientSum
) -> DiscriminatorLoss:
    """Return the loss whose real and fake part these are, both detached, with the sum of their gradients."""
    terms = DiscriminatorTerms(
        gan_loss=real.gan_loss + fake.gan_loss,
        regularisers=real.regularisers,
        real_logits=real.real_logits,
        fake_logits=fake.fake_logits,
    )
    loss = attach_gradients(
        terms.weighted_sum(gan.weights), gradient_sum.parameters, gradient_sum.gradients
    )
    return DiscriminatorLoss(loss, terms)
