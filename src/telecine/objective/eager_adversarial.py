"""The GAN with eager gradients, and with one pass of a discriminator over the reconstructions for both steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property

import torch
from torch import Tensor, nn

from telecine.base.precision import autocast_dtype, autocast_off
from telecine.base.shapes import Video
from telecine.discriminators import frozen
from telecine.losses import GANLoss
from telecine.objective.adversarial import AdversarialLosses, VideoDiscriminator
from telecine.objective.eager import (
    Gradients,
    accumulating,
    eager_backward,
    gradients_of,
    with_gradient_hook,
    with_gradients,
)
from telecine.objective.weights import Log
from telecine.ops.convolution import differentiated_twice
from telecine.perceptual import sample_frame_indices

# A logit without a gradient in the discriminator's loss, as with the hinge beyond its margin, still has one in the
# generator's. It goes through the shared backward with a cotangent so small that it vanishes in the rounding of the
# discriminator's gradients, and the input's gradient is scaled up afterwards: exactly, since this is a power of two.
TINY_COTANGENT = 2.0**-40


class GradientMode(Enum):
    """How a call takes the gradients of the discriminators' losses."""

    GRAPH = auto()
    """By the caller's `backward()`, through an ordinary graph."""
    JOINT = auto()
    """With the values; real and fake part of a discriminator's loss together, because one depends on the other."""
    SPLIT = auto()
    """With the values; the real part of a discriminator's loss, then the fake part."""
    SHARED = auto()
    """As SPLIT, and the fake part uses the autoencoder step's pass over the reconstructions."""


@dataclass
class _DiscriminatorUpdate:
    """The loss of one discriminator while its real and its fake part are computed one after the other."""

    real_logits: Tensor
    penalty: Log
    """The value of the gradient penalty, empty without one."""
    gradients: Gradients
    """Of the parts that are done, per parameter."""
    fake_logits: Tensor | None = None
    """`None` until the fake part is done."""


@dataclass
class EagerAdversarialLosses(AdversarialLosses):
    """The losses of `AdversarialLosses`, whose gradients are computed with them; the graphs are freed at once."""

    both_steps: bool = field(kw_only=True)
    """Whether the call computes the losses of both steps."""
    mode: GradientMode = field(init=False)

    def __post_init__(self) -> None:
        penalty, fake, autocast_to = self.penalty, self.batch.fake, autocast_dtype(self.batch.fake.device)
        # float16 gradients would underflow: only the caller's scaler knows a suitable loss scale.
        self.is_eager = autocast_to != torch.float16
        # A double backward turns autocast off for the discriminators' step, but not for the autoencoder's.
        is_float32 = autocast_to is None or penalty.double_backward
        # Hooks on parameters would run for the eager gradients and again in the caller's backward.
        has_hooks = any(parameter._backward_hooks for d in self.discriminators for parameter in d.module.parameters())
        both_train = self.both_steps and fake.requires_grad and self.weights.discriminators_train
        same_precision = autocast_to is None or not is_float32
        if has_hooks or not (self.is_eager or is_float32):
            self.mode = GradientMode.GRAPH
        elif not self._is_separable():
            self.mode = GradientMode.JOINT
        elif both_train and torch.is_grad_enabled() and same_precision:
            self.mode = GradientMode.SHARED
        else:
            self.mode = GradientMode.SPLIT

    def generator_losses(self) -> dict[str, Log]:
        """Return the terms of each discriminator by its name, without those of weight 0."""
        if self.mode is GradientMode.SHARED:
            return {name: generator for name, (generator, _) in self._both_losses.items() if generator}
        return super().generator_losses()

    def discriminator_losses(self) -> dict[str, Log]:
        """Return the loss of each discriminator that trains at this step, its terms and its statistics, by name."""
        if self.mode is GradientMode.SHARED and self.discriminators:
            return {name: discriminator for name, (_, discriminator) in self._both_losses.items()}
        return super().discriminator_losses()

    def _generator_step(self, d: VideoDiscriminator, fake: Video, frame_indices: Tensor) -> Log:
        if not self.is_eager:
            return super()._generator_step(d, fake, frame_indices)
        d = d.given(self.batch.real, frame_indices)
        with frozen(d.module):
            x_fake = d.input_of(fake, frame_indices)
            return eager_backward(lambda x: self._generator_terms(d, d(x), frame_indices), x_fake)

    def _discriminator_step(self, d: VideoDiscriminator, frame_indices: Tensor) -> Log:
        if self.mode is GradientMode.SPLIT:
            return self._split_step(d.given(self.batch.real, frame_indices), frame_indices)
        log = super()._discriminator_step(d, frame_indices)
        if self.mode is GradientMode.JOINT:
            log["loss"] = with_gradients(log["loss"], d.trainable, gradients_of(log["loss"], d.trainable))
        return log

    @cached_property
    def _both_losses(self) -> dict[str, tuple[Log, Log]]:
        """SHARED: the generator's and the discriminator's losses by discriminator."""
        of_generator = self._frame_indices()
        of_others = sample_frame_indices(self.batch.real, 1, self.batch.generator)
        fake = with_gradient_hook(self.batch.fake, self.batch.grad_hook)
        return {d.name: self._shared_step(d, fake, of_generator, of_others) for d in self.discriminators}

    def _shared_step(
        self, d: VideoDiscriminator, fake: Video, of_generator: Mapping[str, Tensor], of_others: Tensor
    ) -> tuple[Log, Log]:
        """SHARED: one pass over the reconstructions, from which both losses take their gradients."""
        frame_indices = of_generator.get(d.name, of_others)
        d = d.given(self.batch.real, frame_indices)
        if d.name not in of_generator:
            return {}, self._split_step(d, frame_indices)
        update = self._real_part(d, frame_indices)

        def losses(x_fake: Tensor) -> Log:
            d_fake = d(x_fake)
            terms = self._generator_terms(d, d_fake, frame_indices)
            can_share = d.term in terms and not self.gan_loss.uses_real
            if not (can_share and _can_share_backward(d.module, d_fake.logits, x_fake)):
                self._add_fake_part(d, update, d_fake.logits)
                return terms
            update.fake_logits = d_fake.logits.detach()
            grad_x, update.gradients = _shared_backward(
                self.gan_loss,
                d_fake.logits,
                x_fake,
                d.trainable,
                retain_graph="feature_matching" in terms,
                add_to=update.gradients,
            )
            return terms | {d.term: with_gradients(terms[d.term], [x_fake], [grad_x])}

        of_generator_step = eager_backward(losses, d.input_of(fake, frame_indices))
        return of_generator_step, self._finish(d, update)

    def _split_step(self, d: VideoDiscriminator, frame_indices: Tensor) -> Log:
        """SPLIT: first the real part of a discriminator's loss, then the fake part."""
        update = self._real_part(d, frame_indices)
        self._add_fake_part(d, update, d(d.input_of(self.batch.fake.detach(), frame_indices)).logits)
        return self._finish(d, update)

    def _real_part(self, d: VideoDiscriminator, frame_indices: Tensor) -> _DiscriminatorUpdate:
        """Start with the penalty, whose double backward takes the most memory: there are no other gradients yet."""
        real = d.input_of(self.batch.real, frame_indices).detach()
        real.requires_grad_(self.penalty.differentiates_real)
        with differentiated_twice(self.penalty.double_backward):
            logits = d(real).logits
        terms = self._discriminator_terms(d, logits, logits.detach(), real=real, fake=real)  # `fake` is not used
        return _DiscriminatorUpdate(
            real_logits=logits.detach(),
            penalty={name: term.detach() for name, term in terms.items() if name == "grad_penalty_loss"},
            gradients=gradients_of(self.discriminator_loss(terms), d.trainable),
        )

    def _add_fake_part(self, d: VideoDiscriminator, update: _DiscriminatorUpdate, logits: Tensor) -> None:
        """Add the gradients of the fake part. The graph is kept."""
        loss = self.discriminator_loss(self._discriminator_terms(d, logits.detach(), logits))
        update.fake_logits = logits.detach()
        update.gradients = gradients_of(loss, d.trainable, retain_graph=True, add_to=update.gradients)

    def _finish(self, d: VideoDiscriminator, update: _DiscriminatorUpdate) -> Log:
        """Return the loss with the gradients of both parts."""
        real_logits, fake_logits = update.real_logits, update.fake_logits
        assert fake_logits is not None
        terms = self._discriminator_terms(d, real_logits, fake_logits) | update.penalty
        log = self._discriminator_log(terms, real_logits, fake_logits)
        return log | {"loss": with_gradients(log["loss"], d.trainable, update.gradients)}


# One backward through a discriminator for both steps. Both differentiate the same logits with respect to the same
# input and parameters, with different cotangents. With one logit per sample, and samples that do not depend on each
# other, the input gradient of a sample is its logit's cotangent times a factor that both steps share: the gradient
# computed for one step is scaled to be the other's.


def _can_share_backward(discriminator: nn.Module, logits: Tensor, x: Tensor) -> bool:
    """Return whether `_shared_backward` applies: independent samples, one logit each, and no float16 cotangents."""
    is_independent = getattr(discriminator, "samples_are_independent", False)
    return is_independent and logits.ndim == 1 and logits.dtype != torch.float16 and x.requires_grad


def _shared_backward(
    gan_loss: GANLoss,
    logits: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    *,
    retain_graph: bool,
    add_to: Gradients | None = None,
) -> tuple[Tensor, Gradients]:
    """Return the gradient of the generator's loss for `x`, and of the discriminator's fake part for its parameters.

    The latter are `None` where the logits do not depend on a parameter; those in `add_to` are added as in
    `gradients_of`.

    Args:
        gan_loss: A separable loss whose generator's part does not use the real logits.
        logits: `(B,)`, of the reconstructions.
        x: The discriminator's input `(B, ...)`.
        parameters: The discriminator's.
        retain_graph: Keep the graph of `logits`.
        add_to: Gradients per parameter.
    """
    generator_cotangent, discriminator_cotangent = _cotangents(gan_loss, logits)
    tiny = TINY_COTANGENT * generator_cotangent
    used = torch.where(discriminator_cotangent.abs() >= tiny.abs(), discriminator_cotangent, tiny)
    # If all cotangents are tiny, rounding hides none of them: the parameters' gradients are then 0.
    factor = (discriminator_cotangent != 0).any()
    known: Gradients = add_to or [None] * len(parameters)
    with accumulating(known, parameters, factor=factor), autocast_off(logits.device):
        grad_x, *grad_parameters = torch.autograd.grad(
            logits, [x, *parameters], grad_outputs=used, retain_graph=retain_graph, allow_unused=True
        )
    # Where `used` is 0, both cotangents are.
    scale = torch.where(used == 0, 0.0, generator_cotangent.to(x.dtype) / used.to(x.dtype))
    gradients: Gradients = [old if new is None else new for new, old in zip(grad_parameters, known, strict=True)]
    return grad_x * scale.view(-1, *[1] * (x.ndim - 1)), gradients


def _cotangents(gan_loss: GANLoss, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the generator's and of the discriminator's loss with respect to the fake logits."""
    leaf = logits.detach().requires_grad_()
    losses = gan_loss(real=leaf.detach(), fake=leaf)
    (generator,) = torch.autograd.grad(losses.generator, leaf, retain_graph=True)
    (discriminator,) = torch.autograd.grad(losses.discriminator, leaf)
    return generator, discriminator
