"""How the gradients of the GAN's losses are taken.

Every strategy computes the terms of `gan.py`, with the same values and gradients. An eager one computes gradients
together with values, and frees the graph at once:

- `through_graph`: nothing is eager; the caller's `backward()` takes the gradients.
- `jointly`: that of a discriminator's whole loss, whose real part and fake part depend on each other.
- `real_then_fake`: that of the real part of a discriminator's loss, then that of the fake part.
- `both_steps`: as before, and one pass of a discriminator over the reconstructions serves both steps of an update.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.precision import autocast_dtype
from telecine.base.shapes import Scalar
from telecine.discriminators import frozen
from telecine.objective.eager import (
    Gradients,
    detached_leaf,
    eager_backward,
    gradients_of,
    shared_backward,
    with_gradients,
    with_gradients_of_each,
)
from telecine.objective.gan import (
    GAN,
    DiscriminatorTerms,
    VideoDiscriminator,
    compute_discriminator_terms,
    compute_generator_terms,
    weighted_sum,
)
from telecine.objective.log import Log, logit_statistics

GeneratorLosses: TypeAlias = dict[str, dict[str, Scalar]]
"""The terms of the autoencoder's loss by name, then by discriminator."""


@dataclass(frozen=True)
class DiscriminatorLoss:
    """The loss of one discriminator, and its log: detached terms and statistics of the logits."""

    loss: Scalar
    log: Log


@dataclass(frozen=True)
class Strategy:
    """How a call takes gradients."""

    autoencoder_is_eager: bool
    """Whether terms of the autoencoder's loss compute gradients together with values."""
    compute_discriminator_loss: Callable[[VideoDiscriminator, GAN], DiscriminatorLoss]
    """`through_graph`, `jointly` or `real_then_fake`."""
    shares_pass: bool
    """Whether an update uses `both_steps`."""


def choose_strategy(gan: GAN, *, eager_gradients: bool) -> Strategy:
    """Return the strategy that needs least memory and time, and is correct for the terms of this call.

    With `eager_gradients` it depends on autocast, and on whether the penalty has a double backward:

    | autocast | double backward | autoencoder's terms | discriminators' losses | one pass for both steps |
    |---|---|---|---|---|
    | off | yes or no | eager | eager | yes |
    | bfloat16 | no | eager | eager | yes |
    | bfloat16 | yes | eager | eager, in float32 | no: the steps differ in precision |
    | float16 | no | through the graph | through the graph | no |
    | float16 | yes | through the graph | eager, in float32 | no |

    Args:
        gan: The GAN of this call.
        eager_gradients: The setting. Without it, all gradients are taken through the graph.
    """
    autocast_to = autocast_dtype(gan.fake.device)
    # float16 gradients would underflow: only the caller's scaler knows a suitable loss scale.
    autoencoder_is_eager = eager_gradients and autocast_to != torch.float16
    # A double backward turns autocast off for the discriminators' step, but not for the autoencoder's.
    discriminators_are_eager = eager_gradients and (
        autocast_to != torch.float16 or gan.has_double_backward
    )
    # Hooks on parameters would run for the eager gradients and again in the caller's backward.
    if any(
        parameter._backward_hooks for d in gan.discriminators for parameter in d.module.parameters()
    ):
        discriminators_are_eager = False
    if not discriminators_are_eager:
        return Strategy(autoencoder_is_eager, through_graph, shares_pass=False)
    if gan.loss.parts is None or gan.compares_real_and_fake:
        return Strategy(autoencoder_is_eager, jointly, shares_pass=False)
    both_train = (
        gan.fake.requires_grad and gan.weights.discriminators_train and torch.is_grad_enabled()
    )
    same_precision = autocast_to is None or not gan.has_double_backward
    return Strategy(autoencoder_is_eager, real_then_fake, shares_pass=both_train and same_precision)


def generator_step(gan: GAN, *, eager: bool) -> GeneratorLosses:
    """Return the terms of the autoencoder's loss from all discriminators, which get no gradient."""
    losses: GeneratorLosses = {term.name: {} for term in gan.autoencoder_terms}
    for d in discriminators_of_generator_step(gan):
        fake = d.input_of(gan.fake)
        compute_terms = partial(_compute_terms_of_fake, d, gan)
        with frozen(d.module):
            terms = eager_backward(compute_terms, fake) if eager else compute_terms(fake)
        for name, term in terms.items():
            losses[name][d.name] = term
    return losses


def _compute_terms_of_fake(d: VideoDiscriminator, gan: GAN, fake: Tensor) -> Log:
    return compute_generator_terms(d, gan, d_fake=d(fake))


def discriminator_step(gan: GAN, strategy: Strategy) -> dict[str, DiscriminatorLoss]:
    """Return the loss of each discriminator that trains at this step, by name. The autoencoder gets no gradient."""
    # Drawn even if no discriminator trains, so that later random numbers do not depend on it.
    frame_indices = gan.one_frame_of_each_clip()
    if not gan.weights.discriminators_train:
        return {}
    losses = {}
    with gan.precision_of_discriminators():
        for d in gan.discriminators:
            losses[d.name] = strategy.compute_discriminator_loss(
                replace(d, frame_indices=frame_indices), gan
            )
    return losses


def discriminators_of_generator_step(gan: GAN) -> list[VideoDiscriminator]:
    """Return the discriminators that terms of the autoencoder's loss need, each bound to one frame of each clip."""
    needed = [d for d in gan.discriminators if gan.autoencoder_terms_of(d)]
    return [replace(d, frame_indices=gan.one_frame_of_each_clip()) for d in needed]


def through_graph(d: VideoDiscriminator, gan: GAN) -> DiscriminatorLoss:
    """Return a discriminator's loss with its graph."""
    whole = compute_discriminator_terms(
        d, gan, fake=d.input_of(gan.fake), real=d.input_of(gan.real)
    )
    assert whole.real_logits is not None
    assert whole.fake_logits is not None
    log = {f"{name}_loss": term.detach() for name, term in whole.terms.items()}
    log |= logit_statistics(real=whole.real_logits, fake=whole.fake_logits, gan_loss=gan.loss)
    return DiscriminatorLoss(weighted_sum(whole.terms, gan.weights), log)


def jointly(d: VideoDiscriminator, gan: GAN) -> DiscriminatorLoss:
    """Return a discriminator's loss with the gradients of its parameters."""
    whole = through_graph(d, gan)
    parameters = d.trained_parameters
    gradients = gradients_of(whole.loss, parameters)
    return DiscriminatorLoss(with_gradients(whole.loss, parameters, gradients), whole.log)


def real_then_fake(d: VideoDiscriminator, gan: GAN) -> DiscriminatorLoss:
    """Return a discriminator's loss with the gradients of its parameters, those of the real part first."""
    parameters = d.trained_parameters
    real, gradients = _real_part(d, gan, parameters)
    fake = compute_discriminator_terms(d, gan, fake=d.input_of(gan.fake.detach()), real=None)
    gradients = gradients_of(weighted_sum(fake.terms, gan.weights), parameters, add_to=gradients)
    return _sum_of_parts(gan, real, fake, parameters, gradients)


def both_steps(gan: GAN) -> tuple[GeneratorLosses, dict[str, DiscriminatorLoss]]:
    """Return the losses of both steps, with one pass of each discriminator over the reconstructions.

    The discriminators' part does not enter `gan.precision_of_discriminators()`, as `discriminator_step` does:
    `choose_strategy` selects this function only where that context would change nothing.
    """
    generator_losses: GeneratorLosses = {term.name: {} for term in gan.autoencoder_terms}
    discriminator_losses = {}
    in_generator_step = {d.name: d for d in discriminators_of_generator_step(gan)}
    frame_indices = gan.one_frame_of_each_clip()
    for d in gan.discriminators:
        if d.name not in in_generator_step:
            discriminator_losses[d.name] = real_then_fake(
                replace(d, frame_indices=frame_indices), gan
            )
            continue
        terms, discriminator_losses[d.name] = _one_pass(in_generator_step[d.name], gan)
        for name, term in terms.items():
            generator_losses[name][d.name] = term
    return generator_losses, discriminator_losses


def _one_pass(d: VideoDiscriminator, gan: GAN) -> tuple[Log, DiscriminatorLoss]:
    """Return the terms of the autoencoder's loss from one discriminator, and the discriminator's own loss."""
    parameters = d.trained_parameters
    real, gradients = _real_part(d, gan, parameters)
    fake = d.input_of(gan.fake)
    leaf = detached_leaf(fake)
    d_fake = d(leaf)
    terms = compute_generator_terms(d, gan, d_fake=d_fake)
    fake_loss = gan.loss.compute_discriminator_loss(real_logits=None, fake_logits=d_fake.logits)
    generator_loss = terms.get(d.adversarial_term)
    if generator_loss is not None and _can_share_backward(d, d_fake.logits, leaf):
        retain_graph = len(terms) > 1
        grad_x, gradients = shared_backward(
            generator_loss,
            fake_loss,
            d_fake.logits,
            leaf,
            parameters,
            retain_graph=retain_graph,
            add_to=gradients,
        )
        terms[d.adversarial_term] = with_gradients(generator_loss, [leaf], [grad_x])
    else:
        gradients = gradients_of(fake_loss, parameters, retain_graph=True, add_to=gradients)
    fake_part = DiscriminatorTerms({"discr": fake_loss}, None, d_fake.logits)
    terms = with_gradients_of_each(terms, [leaf], [fake])
    return terms, _sum_of_parts(gan, real, fake_part, parameters, gradients)


def _can_share_backward(d: VideoDiscriminator, logits: Tensor, x: Tensor) -> bool:
    """Return whether `shared_backward` applies: independent samples, one logit each, and no float16 cotangents.

    It does not for a map of logits, as the discriminators "patch" and "features" return it: a sample's input gradient
    then depends on several cotangents.
    """
    is_independent = getattr(d.module, "samples_are_independent", False)
    return is_independent and logits.ndim == 1 and logits.dtype != torch.float16 and x.requires_grad


def _real_part(
    d: VideoDiscriminator, gan: GAN, parameters: Sequence[Tensor]
) -> tuple[DiscriminatorTerms, Gradients]:
    """Return the detached real part of a discriminator's loss with the penalty, and its gradients.

    It comes first: the penalty's double backward takes the most memory, and there are no other gradients yet.
    """
    part = compute_discriminator_terms(d, gan, fake=None, real=d.input_of(gan.real))
    gradients = gradients_of(weighted_sum(part.terms, gan.weights), parameters)
    assert part.real_logits is not None
    terms = {name: term.detach() for name, term in part.terms.items()}
    return DiscriminatorTerms(terms, part.real_logits.detach(), None), gradients


def _sum_of_parts(
    gan: GAN,
    real: DiscriminatorTerms,
    fake: DiscriminatorTerms,
    parameters: Sequence[Tensor],
    gradients: Gradients,
) -> DiscriminatorLoss:
    """Return a discriminator's loss from its real part, its fake part and the gradients of both."""
    assert real.real_logits is not None
    assert fake.fake_logits is not None
    terms = {**real.terms, "discr": real.terms["discr"] + fake.terms["discr"].detach()}
    loss = with_gradients(weighted_sum(terms, gan.weights), parameters, gradients)
    log = {f"{name}_loss": term for name, term in terms.items()}
    log |= logit_statistics(real=real.real_logits, fake=fake.fake_logits, gan_loss=gan.loss)
    return DiscriminatorLoss(loss, log)
