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
    discriminator_terms,
    generator_terms,
    terms_of_outputs,
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

    is_eager: bool
    """Whether terms of the autoencoder's loss compute gradients together with values."""
    discriminator_loss: Callable[[VideoDiscriminator, GAN], DiscriminatorLoss]
    """`through_graph`, `jointly` or `real_then_fake`."""
    shares_pass: bool
    """Whether an update uses `both_steps`."""


def choose_strategy(gan: GAN, *, eager_gradients: bool) -> Strategy:
    """Return the strategy that needs least memory and time, and is correct for the terms of this call."""
    autocast_to = autocast_dtype(gan.fake.device)
    # float16 gradients would underflow: only the caller's scaler knows a suitable loss scale.
    is_eager = eager_gradients and autocast_to != torch.float16
    # A double backward turns autocast off for the discriminators' step, but not for the autoencoder's.
    is_float32 = autocast_to is None or gan.has_double_backward
    # Hooks on parameters would run for the eager gradients and again in the caller's backward.
    has_hooks = any(weight._backward_hooks for d in gan.discriminators for weight in d.module.parameters())
    if not eager_gradients or has_hooks or not (is_eager or is_float32):
        return Strategy(is_eager, through_graph, shares_pass=False)
    if gan.loss.parts is None or gan.compares_real_and_fake:
        return Strategy(is_eager, jointly, shares_pass=False)
    both_train = gan.fake.requires_grad and gan.discriminators_train and torch.is_grad_enabled()
    same_precision = autocast_to is None or not gan.has_double_backward
    return Strategy(is_eager, real_then_fake, shares_pass=both_train and same_precision)


def generator_step(gan: GAN, *, eager: bool) -> GeneratorLosses:
    """Return the terms of the autoencoder's loss from all discriminators, which get no gradient."""
    losses: GeneratorLosses = {term.name: {} for term in gan.generator_terms}
    for d in discriminators_of_generator(gan):
        fake = d.input_of(gan.fake)
        terms_of = partial(_terms_of_fake, d, gan, gan.real_for_generator(d))
        with frozen(d.module):
            terms = eager_backward(terms_of, fake) if eager else terms_of(fake)
        for name, term in terms.items():
            losses[name][d.name] = term
    return losses


def _terms_of_fake(d: VideoDiscriminator, gan: GAN, real: Tensor | None, fake: Tensor) -> Log:
    return generator_terms(d, gan, fake=fake, real=real)


def discriminator_step(gan: GAN, strategy: Strategy) -> dict[str, DiscriminatorLoss]:
    """Return the loss of each discriminator that trains at this step, by name. The autoencoder gets no gradient."""
    frame_indices = gan.one_frame_of_each_clip()
    if not gan.discriminators_train:
        return {}
    losses = {}
    with gan.precision_of_discriminators():
        for d in gan.discriminators:
            losses[d.name] = strategy.discriminator_loss(replace(d, frame_indices=frame_indices), gan)
    return losses


def discriminators_of_generator(gan: GAN) -> list[VideoDiscriminator]:
    """Return the discriminators that terms of the autoencoder's loss need, each bound to one frame of each clip."""
    needed = [d for d in gan.discriminators if gan.terms_of_generator(d)]
    return [replace(d, frame_indices=gan.one_frame_of_each_clip()) for d in needed]


def through_graph(d: VideoDiscriminator, gan: GAN) -> DiscriminatorLoss:
    """Return a discriminator's loss with its graph."""
    parts = discriminator_terms(d, gan, fake=d.input_of(gan.fake), real=d.input_of(gan.real))
    assert parts.real_logits is not None
    assert parts.fake_logits is not None
    log = {f"{name}_loss": term.detach() for name, term in parts.terms.items()}
    log |= logit_statistics(real=parts.real_logits, fake=parts.fake_logits, gan_loss=gan.loss)
    return DiscriminatorLoss(gan.discriminator_loss(parts.terms), log)


def jointly(d: VideoDiscriminator, gan: GAN) -> DiscriminatorLoss:
    """Return a discriminator's loss with the gradients of its weights."""
    whole = through_graph(d, gan)
    weights = d.trained_weights
    gradients = gradients_of(whole.loss, weights)
    return DiscriminatorLoss(with_gradients(whole.loss, weights, gradients), whole.log)


def real_then_fake(d: VideoDiscriminator, gan: GAN) -> DiscriminatorLoss:
    """Return a discriminator's loss with the gradients of its weights, those of the real part first."""
    weights = d.trained_weights
    real, gradients = _real_part(d, gan, weights)
    fake = discriminator_terms(d, gan, fake=d.input_of(gan.fake.detach()), real=None)
    gradients = gradients_of(gan.discriminator_loss(fake.terms), weights, add_to=gradients)
    return _sum_of_parts(gan, real, fake, weights, gradients)


def both_steps(gan: GAN) -> tuple[GeneratorLosses, dict[str, DiscriminatorLoss]]:
    """Return the losses of both steps, with one pass of each discriminator over the reconstructions."""
    generator: GeneratorLosses = {term.name: {} for term in gan.generator_terms}
    discriminators = {}
    of_generator = {d.name: d for d in discriminators_of_generator(gan)}
    frame_indices = gan.one_frame_of_each_clip()
    for d in gan.discriminators:
        if d.name not in of_generator:
            discriminators[d.name] = real_then_fake(replace(d, frame_indices=frame_indices), gan)
            continue
        terms, discriminators[d.name] = _one_pass(of_generator[d.name], gan)
        for name, term in terms.items():
            generator[name][d.name] = term
    return generator, discriminators


def _one_pass(d: VideoDiscriminator, gan: GAN) -> tuple[Log, DiscriminatorLoss]:
    """Return the terms of the autoencoder's loss from one discriminator, and the discriminator's own loss."""
    weights = d.trained_weights
    real, gradients = _real_part(d, gan, weights)
    fake = d.input_of(gan.fake)
    leaf = detached_leaf(fake)
    d_fake = d(leaf)
    d_real = None
    real_input = gan.real_for_generator(d)
    if real_input is not None:
        with torch.no_grad():
            d_real = d(real_input)
    terms = terms_of_outputs(d, gan, d_fake=d_fake, d_real=d_real)
    fake_loss = gan.loss.discriminator(real_logits=None, fake_logits=d_fake.logits)
    generator_loss = terms.get(d.adversarial_term)
    if generator_loss is not None and _can_share_backward(d, d_fake.logits, leaf):
        retain_graph = len(terms) > 1
        grad_x, gradients = shared_backward(
            generator_loss, fake_loss, d_fake.logits, leaf, weights, retain_graph=retain_graph, add_to=gradients
        )
        terms[d.adversarial_term] = with_gradients(generator_loss, [leaf], [grad_x])
    else:
        gradients = gradients_of(fake_loss, weights, retain_graph=True, add_to=gradients)
    parts = DiscriminatorTerms({"discr": fake_loss}, None, d_fake.logits)
    return with_gradients_of_each(terms, [leaf], [fake]), _sum_of_parts(gan, real, parts, weights, gradients)


def _can_share_backward(d: VideoDiscriminator, logits: Tensor, x: Tensor) -> bool:
    """Return whether `shared_backward` applies: independent samples, one logit each, and no float16 cotangents."""
    is_independent = getattr(d.module, "samples_are_independent", False)
    return is_independent and logits.ndim == 1 and logits.dtype != torch.float16 and x.requires_grad


def _real_part(d: VideoDiscriminator, gan: GAN, weights: Sequence[Tensor]) -> tuple[DiscriminatorTerms, Gradients]:
    """Return the detached real part of a discriminator's loss with the penalty, and its gradients.

    It comes first: the penalty's double backward takes the most memory, and there are no other gradients yet.
    """
    part = discriminator_terms(d, gan, fake=None, real=d.input_of(gan.real))
    gradients = gradients_of(gan.discriminator_loss(part.terms), weights)
    assert part.real_logits is not None
    terms = {name: term.detach() for name, term in part.terms.items()}
    return DiscriminatorTerms(terms, part.real_logits.detach(), None), gradients


def _sum_of_parts(
    gan: GAN, real: DiscriminatorTerms, fake: DiscriminatorTerms, weights: Sequence[Tensor], gradients: Gradients
) -> DiscriminatorLoss:
    """Return a discriminator's loss from its real part, its fake part and the gradients of both."""
    assert real.real_logits is not None
    assert fake.fake_logits is not None
    terms = {**real.terms, "discr": real.terms["discr"] + fake.terms["discr"].detach()}
    loss = with_gradients(gan.discriminator_loss(terms), weights, gradients)
    log = {f"{name}_loss": term for name, term in terms.items()}
    log |= logit_statistics(real=real.real_logits, fake=fake.fake_logits, gan_loss=gan.loss)
    return DiscriminatorLoss(loss, log)
