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
    """Eagerly, of the whole loss: its real part and its fake part depend on each other. With several discriminators it
    needs less memory than the graph, as the graph of one exists at a time: for three with the relativistic loss and
    "r1_and_r2" 319 instead of 456 MB. With a single one it saves nothing, 261 and 246 MB. The time is the same."""
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
    # First of all, a frame of each clip is drawn for each discriminator that terms of the autoencoder's loss need, and
    # one for the discriminators' losses. It is also drawn for discriminators of videos, and while none trains: later
    # random numbers do not depend on it.
    generator_frames: dict[str, Tensor] = {}
    if "autoencoder" in gan.sides:
        for d in gan.discriminators:
            if gan.autoencoder_terms_of(d):
                generator_frames[d.name] = sample_frame_indices(gan.real, 1, gan.rng)
    discriminator_frames: Tensor | None = None
    if "discriminators" in gan.sides:
        discriminator_frames = sample_frame_indices(gan.real, 1, gan.rng)

    generator_losses: GeneratorLosses = {term.name: {} for term in gan.autoencoder_terms}
    discriminator_losses: dict[str, DiscriminatorLoss] = {}
    for d in gan.discriminators:
        terms: TermValues = {}
        frames = generator_frames.get(d.name)
        if frames is not None and how is DiscriminatorGradients.ONE_PASS:
            with gan.precision_of_discriminators():
                terms, discriminator_losses[d.name] = _eager_parts(d, gan, frames, serves_both=True)
        else:
            if frames is not None:
                terms = _generator_terms(d, gan, frames, is_eager=autoencoder_is_eager)
            if discriminator_frames is not None and gan.weights.discriminators_train:
                with gan.precision_of_discriminators():
                    discriminator_losses[d.name] = _discriminator_loss(
                        d, gan, discriminator_frames, how
                    )
        for name, term in terms.items():
            generator_losses[name][d.name] = term
    return generator_losses, discriminator_losses


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
    """Return the loss of one discriminator by itself, without the terms of the autoencoder's loss."""
    is_separable = how in (DiscriminatorGradients.EAGER_PARTS, DiscriminatorGradients.ONE_PASS)
    if is_separable:
        _, loss = _eager_parts(d, gan, frame_indices, serves_both=False)
        return loss
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


def _eager_parts(
    d: BoundDiscriminator, gan: GANBatch, frame_indices: Tensor, *, serves_both: bool
) -> tuple[TermValues, DiscriminatorLoss]:
    """Return a discriminator's loss with the gradients of its parameters: of its real part, then of its fake part.

    Args:
        d: The discriminator.
        gan: The terms that count at this step.
        frame_indices: The frame of each clip that a discriminator of frames sees, `(B, 1)`.
        serves_both: Whether its pass over the reconstructions serves the autoencoder's loss, too. The terms of that are
            returned with their gradients for the reconstructions; otherwise there are none.
    """
    # The real part comes first: the penalty's double backward takes the most memory, and there are no other
    # gradients yet. Detached, it frees its graph before the next one is built.
    gradient_sum = GradientSum(d.trained_parameters)
    real = compute_discriminator_terms(d, gan, fake=None, real=d.input_of(gan.real, frame_indices))
    gradient_sum.backward(real.weighted_sum(gan.weights))  # the double backward, too
    real = real.detached()

    # One pass over the reconstructions, and what is computed from its output.
    fake = d.input_of(gan.fake, frame_indices)
    leaf = detached_leaf(fake) if serves_both else fake.detach()
    d_fake = d(leaf)
    logits = d_fake.logits
    fake_loss = gan.loss.compute_discriminator_loss(real_logits=None, fake_logits=logits)
    terms: TermValues = {}
    if serves_both:
        terms = compute_generator_terms(d, gan, d_fake=d_fake, frame_indices=frame_indices)
    del d_fake  # its features, which the backward frees

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

    whole = DiscriminatorTerms(
        real.gan_loss + fake_loss.detach(),
        real.regularisers,
        real.real_logits,
        logits.detach(),
    )
    loss = attach_gradients(
        whole.weighted_sum(gan.weights), gradient_sum.parameters, gradient_sum.gradients
    )
    return done, DiscriminatorLoss(loss, whole)
