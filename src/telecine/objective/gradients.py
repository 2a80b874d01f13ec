"""How the gradients of the GAN's losses are taken: through the graph, or eagerly.

Each way computes the terms of `gan.py`, with the same values and gradients. `choose_strategy` selects one. An eager one
computes gradients together with values, and frees the graph at once.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.precision import autocast_dtype
from telecine.base.shapes import Scalar
from telecine.discriminators import frozen
from telecine.losses import JointGANLoss
from telecine.objective.bound_discriminator import BoundDiscriminator
from telecine.objective.gan import (
    DiscriminatorTerms,
    GANBatch,
    compute_discriminator_terms,
    compute_generator_terms,
)
from telecine.objective.log import Log, logit_statistics
from telecine.objective.shared_backward import can_share_backward, shared_backward
from telecine.objective.terms import TermValues
from telecine.ops.eager_gradients import (
    GradientSum,
    detached_leaf,
    eager_backward,
    gradients_of,
    with_gradients,
    with_gradients_of_each,
)
from telecine.settings import ObjectiveConfig

GeneratorLosses: TypeAlias = dict[str, dict[str, Scalar]]
"""The terms of the autoencoder's loss by the term's name, then by the discriminator's."""


@dataclass(frozen=True)
class DiscriminatorLoss:
    """The loss of one discriminator, and what is logged of it."""

    loss: Scalar
    gan_loss: Tensor
    """Detached."""
    regularisers: Log
    """The other terms by name, without their weights, detached."""
    statistics: Log
    """Those of its logits by name."""


class DiscriminatorGradients(Enum):
    """How the gradients of the discriminators' losses are taken."""

    THROUGH_GRAPH = auto()
    """By the caller's `backward()`."""
    EAGER_WHOLE = auto()
    """Eagerly, of the whole loss: its real part and its fake part depend on each other."""
    EAGER_PARTS = auto()
    """Eagerly, of the real part of the loss, then of the fake part."""
    ONE_PASS = auto()
    """As `EAGER_PARTS`, where one pass of a discriminator over the reconstructions serves both steps of an update."""


@dataclass(frozen=True)
class Strategy:
    """How a call takes gradients."""

    autoencoder_is_eager: bool
    """Whether terms of the autoencoder's loss compute gradients together with values."""
    discriminators: DiscriminatorGradients
    """How the gradients of the discriminators' losses are taken."""


def choose_strategy(gan: GANBatch, config: ObjectiveConfig, *, are_both_computed: bool) -> Strategy:
    """Return the strategy that needs least memory and time, and is correct for the terms of this call.

    With a double backward, `GANBatch.precision_of_discriminators` turns autocast off in the discriminators' step, and
    leaves it on in the autoencoder's. With `penalty.every` above 1, some steps have one and some do not.

    Args:
        gan: What this call computes with discriminators.
        config: The settings. Without `eager_gradients`, all gradients are taken through the graph.
        are_both_computed: Whether the call computes the losses of both steps, as `both_losses` does.
    """
    is_float16 = autocast_dtype(gan.fake.device) == torch.float16
    # Eager gradients in float16 would underflow: only the caller's scaler knows a suitable loss scale.
    autoencoder_is_eager = config.eager_gradients and not is_float16
    discriminators = _choose_for_discriminators(gan, config, are_both_computed=are_both_computed)
    return Strategy(autoencoder_is_eager, discriminators)


def _choose_for_discriminators(
    gan: GANBatch, config: ObjectiveConfig, *, are_both_computed: bool
) -> DiscriminatorGradients:
    """Return how the gradients of the discriminators' losses are taken; the first reason decides."""
    if not config.eager_gradients:
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
    if isinstance(gan.loss, JointGANLoss) or gan.regularisers_read_fake:
        return DiscriminatorGradients.EAGER_WHOLE

    # One pass serves both steps only if the call computes both, and both take gradients of it.
    both_train = (
        gan.fake.requires_grad and gan.weights.discriminators_train and torch.is_grad_enabled()
    )
    if not (are_both_computed and both_train):
        return DiscriminatorGradients.EAGER_PARTS

    # Under autocast a double backward makes the precision of the steps differ.
    if autocast is not None and gan.has_double_backward:
        return DiscriminatorGradients.EAGER_PARTS
    return DiscriminatorGradients.ONE_PASS


def compute_generator_losses(gan: GANBatch, *, eager: bool) -> GeneratorLosses:
    """Return the terms of the autoencoder's loss from all discriminators, which get no gradient."""
    losses: GeneratorLosses = {term.name: {} for term in gan.autoencoder_terms}
    for d in discriminators_of_generator_losses(gan):
        fake = d.input_of(gan.fake)
        compute_terms = partial(_compute_terms_of_fake, d, gan)
        with frozen(d.module):
            terms = eager_backward(compute_terms, fake) if eager else compute_terms(fake)
        for name, term in terms.items():
            losses[name][d.name] = term
    return losses


def _compute_terms_of_fake(d: BoundDiscriminator, gan: GANBatch, fake: Tensor) -> TermValues:
    return compute_generator_terms(d, gan, d_fake=d(fake))


def compute_discriminator_losses(
    gan: GANBatch, how: DiscriminatorGradients
) -> dict[str, DiscriminatorLoss]:
    """Return the loss of each discriminator that trains at this step, by name. The autoencoder gets no gradient."""
    # Drawn even if no discriminator trains, so that later random numbers do not depend on it.
    frame_indices = gan.draw_frame_of_each_clip()
    if not gan.weights.discriminators_train:
        return {}
    losses = {}
    with gan.precision_of_discriminators():
        for d in gan.discriminators:
            bound = replace(d, frame_indices=frame_indices)
            if how is DiscriminatorGradients.EAGER_PARTS:
                losses[d.name] = _eager_parts(bound, gan)
            else:
                is_eager = how is DiscriminatorGradients.EAGER_WHOLE
                losses[d.name] = _whole_loss(bound, gan, is_eager=is_eager)
    return losses


def discriminators_of_generator_losses(gan: GANBatch) -> list[BoundDiscriminator]:
    """Return the discriminators that terms of the autoencoder's loss need, each with a random frame of each clip."""
    discriminators = []
    for d in gan.discriminators:
        if gan.autoencoder_terms_of(d):
            # Drawn for those of videos, too, so that later random numbers do not depend on the kind.
            frame_indices = gan.draw_frame_of_each_clip()
            discriminators.append(replace(d, frame_indices=frame_indices))
    return discriminators


def _whole_loss(d: BoundDiscriminator, gan: GANBatch, *, is_eager: bool) -> DiscriminatorLoss:
    """Return a discriminator's loss with its graph, or with the gradients of its parameters."""
    whole = compute_discriminator_terms(
        d, gan, fake=d.input_of(gan.fake), real=d.input_of(gan.real)
    )
    loss = whole.weighted_sum(gan.weights)
    if is_eager:
        parameters = d.trained_parameters
        loss = with_gradients(loss, parameters, gradients_of(loss, parameters))
    return _with_log(loss, whole, gan)


def _eager_parts(d: BoundDiscriminator, gan: GANBatch) -> DiscriminatorLoss:
    """Return a discriminator's loss with the gradients of its parameters, those of the real part first."""
    gradient_sum = GradientSum(d.trained_parameters)
    real = _real_part(d, gan, gradient_sum)
    fake = compute_discriminator_terms(d, gan, fake=d.input_of(gan.fake.detach()), real=None)
    gradient_sum.backward(fake.weighted_sum(gan.weights))
    return _sum_of_parts(gan, real, fake, gradient_sum)


def compute_losses_in_one_pass(
    gan: GANBatch,
) -> tuple[GeneratorLosses, dict[str, DiscriminatorLoss]]:
    """Return the losses of both steps, with one pass of each discriminator over the reconstructions."""
    # `choose_strategy` takes one pass only if the discriminators have one precision in both steps.
    generator_losses: GeneratorLosses = {term.name: {} for term in gan.autoencoder_terms}
    discriminator_losses = {}
    # Random frames are drawn in the order of two calls.
    for_generator = {d.name: d for d in discriminators_of_generator_losses(gan)}
    frame_indices = gan.draw_frame_of_each_clip()
    for d in gan.discriminators:
        if d.name in for_generator:
            terms, discriminator_losses[d.name] = _one_pass(for_generator[d.name], gan)
            for name, term in terms.items():
                generator_losses[name][d.name] = term
        else:
            bound = replace(d, frame_indices=frame_indices)
            discriminator_losses[d.name] = _eager_parts(bound, gan)
    return generator_losses, discriminator_losses


def _one_pass(d: BoundDiscriminator, gan: GANBatch) -> tuple[TermValues, DiscriminatorLoss]:
    """Return the terms of the autoencoder's loss from one discriminator, and the discriminator's own loss."""
    gradient_sum = GradientSum(d.trained_parameters)
    real = _real_part(d, gan, gradient_sum)

    # One pass over the reconstructions, and the losses of both steps on its output.
    fake = d.input_of(gan.fake)
    leaf = detached_leaf(fake)
    d_fake = d(leaf)
    terms = compute_generator_terms(d, gan, d_fake=d_fake)
    fake_loss = gan.loss.compute_discriminator_loss(real_logits=None, fake_logits=d_fake.logits)

    # The gradients: of the fake part for the parameters, of each term for the reconstructions.
    done: TermValues = {}
    generator_loss = terms.get(d.adversarial_term)
    if generator_loss is not None and can_share_backward(d, d_fake.logits, leaf):
        del terms[d.adversarial_term]
        grad_fake = shared_backward(
            generator_loss,
            fake_loss,
            d_fake.logits,
            leaf,
            gradient_sum,
            retain_graph=len(terms) > 0,
        )
        done[d.adversarial_term] = with_gradients(generator_loss, [fake], [grad_fake])
    else:
        gradient_sum.backward(fake_loss, retain_graph=True)
    done |= with_gradients_of_each(terms, [leaf], [fake])

    fake_part = DiscriminatorTerms(fake_loss, {}, None, d_fake.logits)
    return done, _sum_of_parts(gan, real, fake_part, gradient_sum)


def _real_part(
    d: BoundDiscriminator, gan: GANBatch, gradient_sum: GradientSum
) -> DiscriminatorTerms:
    """Return the detached real part of a discriminator's loss with the penalty, and add its gradients.

    It comes first: the penalty's double backward takes the most memory, and there are no other gradients yet.
    """
    part = compute_discriminator_terms(d, gan, fake=None, real=d.input_of(gan.real))
    gradient_sum.backward(part.weighted_sum(gan.weights))  # the double backward, too
    assert part.real_logits is not None
    regularisers = {name: term.detach() for name, term in part.regularisers.items()}
    return DiscriminatorTerms(
        part.gan_loss.detach(), regularisers, part.real_logits.detach(), fake_logits=None
    )


def _sum_of_parts(
    gan: GANBatch, real: DiscriminatorTerms, fake: DiscriminatorTerms, gradient_sum: GradientSum
) -> DiscriminatorLoss:
    """Return a discriminator's loss from its real part, its fake part and the gradients of both."""
    gan_loss = real.gan_loss + fake.gan_loss.detach()
    whole = DiscriminatorTerms(gan_loss, real.regularisers, real.real_logits, fake.fake_logits)
    loss = whole.weighted_sum(gan.weights)
    loss = with_gradients(loss, gradient_sum.parameters, gradient_sum.gradients)
    return _with_log(loss, whole, gan)


def _with_log(loss: Scalar, whole: DiscriminatorTerms, gan: GANBatch) -> DiscriminatorLoss:
    """Return a discriminator's loss with its log."""
    assert whole.real_logits is not None
    assert whole.fake_logits is not None
    regularisers = {name: term.detach() for name, term in whole.regularisers.items()}
    statistics = logit_statistics(real=whole.real_logits, fake=whole.fake_logits, gan_loss=gan.loss)
    return DiscriminatorLoss(loss, whole.gan_loss.detach(), regularisers, statistics)
