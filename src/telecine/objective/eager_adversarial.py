"""The GAN with eager gradients, and with one pass of a discriminator over the reconstructions for both steps."""

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import cached_property

import torch
from torch import Tensor, nn

from telecine.base.precision import autocast_dtype
from telecine.discriminators import frozen
from telecine.objective.adversarial import AdversarialLosses, VideoDiscriminator
from telecine.objective.eager import Gradients, eager_backward, gradients_of, shared_backward, with_gradients
from telecine.objective.weights import Log


class _GradientMode(Enum):
    """How a call takes the gradients of the discriminators' losses."""

    GRAPH = auto()  # by the caller's `backward()`, through an ordinary graph
    JOINT = auto()
    """With the values; real and fake part of a discriminator's loss together, because one depends on the other."""
    SPLIT = auto()  # with the values; the real part of a discriminator's loss, then the fake part
    SHARED = auto()  # as SPLIT, and the fake part uses the autoencoder step's pass over the reconstructions


@dataclass
class EagerAdversarialLosses(AdversarialLosses):
    """The losses of `AdversarialLosses`, whose gradients are computed with them; the graphs are freed at once."""

    mode: _GradientMode = field(init=False)

    def __post_init__(self) -> None:
        penalty, fake, autocast_to = self.penalty, self.batch.disc_fake, autocast_dtype(self.batch.disc_fake.device)
        # float16 gradients would underflow: only the caller's scaler knows a suitable loss scale.
        self.is_eager = autocast_to != torch.float16
        # A double backward turns autocast off for the discriminators' step, but not for the autoencoder's.
        is_float32 = autocast_to is None or penalty.double_backward
        # Hooks on parameters would run for the eager gradients and again in the caller's backward.
        has_hooks = any(parameter._backward_hooks for d in self.discriminators for parameter in d.module.parameters())
        both_train = self.both_steps and fake.requires_grad and self.weights.discriminators_train
        same_precision = autocast_to is None or not is_float32
        compares = penalty.uses_fake or any(self.weights[name] > 0 for name in self.logit_terms)
        if has_hooks or not (self.is_eager or is_float32):
            self.mode = _GradientMode.GRAPH
        elif compares or not self.gan_loss.is_separable:
            self.mode = _GradientMode.JOINT
        elif both_train and torch.is_grad_enabled() and same_precision:
            self.mode = _GradientMode.SHARED
        else:
            self.mode = _GradientMode.SPLIT

    def generator_losses(self) -> dict[str, Log]:
        """Return each of `GENERATOR_TERMS` as a dict by discriminator, without those of weight 0."""
        if self.mode is _GradientMode.SHARED:
            return self._by_term({name: generator for name, (generator, _) in self._both_losses.items()})
        return super().generator_losses()

    def discriminator_losses(self) -> dict[str, Log]:
        """Return the loss of each discriminator that trains at this step, its terms and its statistics, by name."""
        if self.mode is _GradientMode.SHARED and self.discriminators:
            return {name: discriminator for name, (_, discriminator) in self._both_losses.items()}
        return super().discriminator_losses()

    def _generator_step(self, d: VideoDiscriminator) -> Log:
        if not self.is_eager:
            return super()._generator_step(d)
        with frozen(d.module):
            return eager_backward(lambda x: self._generator_terms(d, d(x)), d.input_of(self.batch.disc_fake))

    def _discriminator_step(self, d: VideoDiscriminator) -> Log:
        if self.mode is _GradientMode.SPLIT:
            return self._split_step(d)
        log = super()._discriminator_step(d)
        if self.mode is _GradientMode.JOINT:
            weights = _trainable(d)
            log["loss"] = with_gradients(log["loss"], weights, gradients_of(log["loss"], weights))
        return log

    @cached_property
    def _both_losses(self) -> dict[str, tuple[Log, Log]]:
        """SHARED: the generator's and the discriminator's losses by discriminator."""
        of_generator = {d.name: d for d in self._for_generator()}
        frame_indices = self._one_frame_of_each_clip()
        return {
            d.name: self._shared_step(of_generator[d.name])
            if d.name in of_generator
            else ({}, self._split_step(replace(d, frame_indices=frame_indices)))
            for d in self.discriminators
        }

    def _shared_step(self, d: VideoDiscriminator) -> tuple[Log, Log]:
        """SHARED: one pass over the reconstructions, from which both losses take their gradients."""
        real_logits, penalty, gradients = self._real_part(d)
        fake_logits = real_logits

        def losses(x_fake: Tensor) -> Log:
            nonlocal fake_logits, gradients
            d_fake = d(x_fake)
            fake_logits = d_fake.logits.detach()
            terms = self._generator_terms(d, d_fake)
            can_share = d.term in terms and not self.gan_loss.uses_real
            if not (can_share and _can_share_backward(d.module, d_fake.logits, x_fake)):
                gradients = self._with_fake_part(d, gradients, d_fake.logits)
                return terms
            keep = "feature_matching" in terms
            grad_x, gradients = shared_backward(
                self.gan_loss, d_fake.logits, x_fake, _trainable(d), retain_graph=keep, add_to=gradients
            )
            return terms | {d.term: with_gradients(terms[d.term], [x_fake], [grad_x])}

        of_generator_step = eager_backward(losses, d.input_of(self.batch.disc_fake))
        return of_generator_step, self._finish(d, real_logits, fake_logits, penalty, gradients)

    def _split_step(self, d: VideoDiscriminator) -> Log:
        """SPLIT: first the real part of a discriminator's loss, then the fake part."""
        real_logits, penalty, gradients = self._real_part(d)
        fake_logits = d(d.input_of(self.batch.disc_fake.detach())).logits
        gradients = self._with_fake_part(d, gradients, fake_logits)
        return self._finish(d, real_logits, fake_logits.detach(), penalty, gradients)

    def _real_part(self, d: VideoDiscriminator) -> tuple[Tensor, Log, Gradients]:
        """Return the logits, the penalty, if there is one, and the gradients of both per parameter.

        They come first: the penalty's double backward takes the most memory, and there are no other gradients yet.
        """
        real, logits = self._input_and_logits(d, self.batch.disc_real, self.penalty.differentiates_real)
        terms = self._discriminator_terms(d, logits, logits.detach(), real=real, fake=real)  # `fake` is not used
        penalty = {name: term.detach() for name, term in terms.items() if name == "grad_penalty_loss"}
        return logits.detach(), penalty, gradients_of(self.discriminator_loss(terms), _trainable(d))

    def _with_fake_part(self, d: VideoDiscriminator, gradients: Gradients, logits: Tensor) -> Gradients:
        """Return the gradients with those of the fake part. The graph is kept."""
        loss = self.discriminator_loss(self._discriminator_terms(d, logits.detach(), logits))
        return gradients_of(loss, _trainable(d), retain_graph=True, add_to=gradients)

    def _finish(
        self, d: VideoDiscriminator, real_logits: Tensor, fake_logits: Tensor, penalty: Log, gradients: Gradients
    ) -> Log:
        terms = self._discriminator_terms(d, real_logits, fake_logits) | penalty
        log = self._discriminator_log(terms, real_logits, fake_logits)
        return log | {"loss": with_gradients(log["loss"], _trainable(d), gradients)}


def _trainable(d: VideoDiscriminator) -> list[nn.Parameter]:
    return [parameter for parameter in d.module.parameters() if parameter.requires_grad]


def _can_share_backward(discriminator: nn.Module, logits: Tensor, x: Tensor) -> bool:
    """Return whether `shared_backward` applies: independent samples, one logit each, and no float16 cotangents."""
    is_independent = getattr(discriminator, "samples_are_independent", False)
    return is_independent and logits.ndim == 1 and logits.dtype != torch.float16 and x.requires_grad
