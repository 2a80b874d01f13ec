"""The GAN: the losses of the generator and of the discriminators, by default with their gradients."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import cached_property

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.precision import autocast_dtype, autocast_off
from telecine.base.shapes import Scalar, Video
from telecine.discriminators import DiscriminatorOutput, frozen
from telecine.losses import GANLoss, Penalty, feature_matching
from telecine.objective.batch import Batch
from telecine.objective.eager import Gradients, eager_backward, gradients_of, shared_backward, with_gradients
from telecine.objective.video_discriminator import VideoDiscriminator
from telecine.objective.weights import Log, Weights
from telecine.ops.convolution import differentiated_twice
from telecine.perceptual import sample_frame_indices

# The terms of the autoencoder's loss that discriminators cause.
_GENERATOR_TERMS = ("adversarial", "multiscale_adversarial", "feature_matching")
# The penalty of a step without one.
NO_PENALTY = Penalty(
    lambda: torch.zeros(()),
    differentiates_real=False,
    differentiates_fake=False,
    double_backward=False,
    uses_fake=False,
)


class GradientMode(Enum):
    """How a call takes the gradients of the discriminators' losses."""

    GRAPH = auto()  # by the caller's `backward()`, through an ordinary graph
    JOINT = auto()
    """With the values; real and fake part of a discriminator's loss together, because one depends on the other."""
    SPLIT = auto()  # with the values; the real part of a discriminator's loss, then the fake part
    SHARED = auto()  # as SPLIT, and the fake part uses the autoencoder step's pass over the reconstructions


@dataclass
class AdversarialLosses:
    """The adversarial losses of one call: the generator's, then the discriminators'.

    A loss of the autoencoder's step gives no gradient to discriminators, and one of the discriminators' step none to
    the autoencoder. With `eager`, gradients are computed with the losses, and the graphs are freed at once.
    """

    discriminators: Sequence[VideoDiscriminator]
    gan_loss: GANLoss
    penalty: Penalty  # `NO_PENALTY` in a step without one
    logit_terms: Mapping[str, nn.ModuleDict]
    """The terms of a discriminator's loss that are modules of its logits, by name and then by discriminator."""
    discriminator_loss: Callable[..., Scalar]  # the weighted sum of the terms of one discriminator
    batch: Batch
    weights: Weights
    both_steps: bool  # whether the call computes the losses of both steps
    eager: bool
    is_eager: bool = field(init=False)  # whether the generator's losses compute gradients together with values
    mode: GradientMode = field(init=False)

    def __post_init__(self) -> None:
        penalty, fake, autocast_to = self.penalty, self.batch.disc_fake, autocast_dtype(self.batch.disc_fake.device)
        # float16 gradients would underflow: only the caller's scaler knows a suitable loss scale.
        self.is_eager = self.eager and autocast_to != torch.float16
        # A double backward turns autocast off for the discriminators' step, but not for the autoencoder's.
        is_float32 = autocast_to is None or penalty.double_backward
        # Hooks on parameters would run for the eager gradients and again in the caller's backward.
        has_hooks = any(parameter._backward_hooks for d in self.discriminators for parameter in d.module.parameters())
        both_train = self.both_steps and fake.requires_grad and self.weights.discriminators_train
        same_precision = autocast_to is None or not is_float32
        compares = penalty.uses_fake or any(self.weights[name] > 0 for name in self.logit_terms)
        if not self.eager or has_hooks or not (self.is_eager or is_float32):
            self.mode = GradientMode.GRAPH
        elif compares or not self.gan_loss.is_separable:
            self.mode = GradientMode.JOINT
        elif both_train and torch.is_grad_enabled() and same_precision:
            self.mode = GradientMode.SHARED
        else:
            self.mode = GradientMode.SPLIT

    def generator_losses(self) -> dict[str, Log]:
        """Return each term of the autoencoder's loss as a dict by discriminator, without those of weight 0."""
        if self.mode is GradientMode.SHARED:
            found = {name: generator for name, (generator, _) in self._both_losses.items()}
        else:
            found = {d.name: self._generator_step(d) for d in self._for_generator()}
        return {name: {d: terms[name] for d, terms in found.items() if name in terms} for name in _GENERATOR_TERMS}

    def discriminator_losses(self) -> dict[str, Log]:
        """Return the loss of each discriminator that trains at this step, its terms and its statistics, by name."""
        if not self.discriminators:
            remedy = "Build the loss with `discr_3d_kwargs` or `discr_kwargs`, or call it with `optimizer_idx=0`."
            raise argument_error("the step of the discriminators", "left out of a loss without any", "called", remedy)
        if self.mode is GradientMode.SHARED:
            return {name: discriminator for name, (_, discriminator) in self._both_losses.items()}
        # A penalty's double backward, and the logits that it differentiates, need float32.
        with autocast_off(self.batch.disc_real.device) if self.penalty.double_backward else nullcontext():
            frame_indices = self._one_frame_of_each_clip()
            on = self.discriminators if self.weights.discriminators_train else []
            return {d.name: self._discriminator_step(replace(d, frame_indices=frame_indices)) for d in on}

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

    def _one_frame_of_each_clip(self) -> Tensor:
        return sample_frame_indices(self.batch.disc_real, 1, self.batch.generator)

    def _for_generator(self) -> list[VideoDiscriminator]:
        """Return the discriminators with a generator's term or feature matching, each bound to one frame of a clip."""
        has_features = self.weights["feature_matching"] > 0
        on = [d for d in self.discriminators if has_features or self.weights[d.term] > 0]
        return [replace(d, frame_indices=self._one_frame_of_each_clip()) for d in on]

    def _generator_step(self, d: VideoDiscriminator) -> Log:
        x_fake = d.input_of(self.batch.disc_fake)
        with frozen(d.module):
            if self.is_eager:
                return eager_backward(lambda x: self._generator_terms(d, d(x)), x_fake)
            return self._generator_terms(d, d(x_fake))

    def _generator_terms(self, d: VideoDiscriminator, d_fake: DiscriminatorOutput) -> Log:
        has_g, has_features = self.weights[d.term] > 0, self.weights["feature_matching"] > 0
        d_real = d_fake  # not used unless it is needed
        if has_features or (has_g and self.gan_loss.uses_real):
            with torch.no_grad():
                d_real = d(d.input_of(self.batch.disc_real))
        terms = {}
        if has_g:
            terms[d.term] = self.gan_loss(real=d_real.logits.detach(), fake=d_fake.logits).generator
        if has_features:
            terms["feature_matching"] = feature_matching(real=d_real.features, fake=d_fake.features)
        return terms

    def _discriminator_step(self, d: VideoDiscriminator) -> Log:
        if self.mode is GradientMode.SPLIT:
            return self._split_step(d)
        real, real_logits = self._input_and_logits(d, self.batch.disc_real, self.penalty.differentiates_real)
        fake, fake_logits = self._input_and_logits(d, self.batch.disc_fake, self.penalty.differentiates_fake)
        terms = self._discriminator_terms(d, real_logits, fake_logits, real=real, fake=fake)
        log = self._discriminator_log(terms, real_logits, fake_logits)
        if self.mode is GradientMode.JOINT:
            weights = d.trained()
            log["loss"] = with_gradients(log["loss"], weights, gradients_of(log["loss"], weights))
        return log

    def _split_step(self, d: VideoDiscriminator) -> Log:
        """SPLIT: first the real part of a discriminator's loss, then the fake part."""
        real_logits, penalty, gradients = self._real_part(d)
        fake_logits = d(d.input_of(self.batch.disc_fake.detach())).logits
        gradients = self._with_fake_part(d, gradients, fake_logits)
        return self._finish(d, real_logits, fake_logits.detach(), penalty, gradients)

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
                self.gan_loss, d_fake.logits, x_fake, d.trained(), retain_graph=keep, add_to=gradients
            )
            return terms | {d.term: with_gradients(terms[d.term], [x_fake], [grad_x])}

        of_generator_step = eager_backward(losses, d.input_of(self.batch.disc_fake))
        return of_generator_step, self._finish(d, real_logits, fake_logits, penalty, gradients)

    def _real_part(self, d: VideoDiscriminator) -> tuple[Tensor, Log, Gradients]:
        """Return the logits, the penalty, if there is one, and the gradients of both per parameter.

        They come first: the penalty's double backward takes the most memory, and there are no other gradients yet.
        """
        real, logits = self._input_and_logits(d, self.batch.disc_real, self.penalty.differentiates_real)
        terms = self._discriminator_terms(d, logits, logits.detach(), real=real, fake=real)  # `fake` is not used
        penalty = {name: term.detach() for name, term in terms.items() if name == "grad_penalty_loss"}
        return logits.detach(), penalty, gradients_of(self.discriminator_loss(terms), d.trained())

    def _with_fake_part(self, d: VideoDiscriminator, gradients: Gradients, logits: Tensor) -> Gradients:
        loss = self.discriminator_loss(self._discriminator_terms(d, logits.detach(), logits))
        return gradients_of(loss, d.trained(), retain_graph=True, add_to=gradients)

    def _finish(
        self, d: VideoDiscriminator, real_logits: Tensor, fake_logits: Tensor, penalty: Log, gradients: Gradients
    ) -> Log:
        terms = self._discriminator_terms(d, real_logits, fake_logits) | penalty
        log = self._discriminator_log(terms, real_logits, fake_logits)
        return log | {"loss": with_gradients(log["loss"], d.trained(), gradients)}

    def _input_and_logits(self, d: VideoDiscriminator, video: Video, requires_grad: bool) -> tuple[Tensor, Tensor]:
        """Return `x` and `D(x)`; `x` is detached, and requires gradients for a penalty that differentiates it."""
        x = d.input_of(video).detach().requires_grad_(requires_grad)
        with differentiated_twice(self.penalty.double_backward):
            return x, d(x).logits

    def _discriminator_terms(
        self, d: VideoDiscriminator, real_logits: Tensor, fake_logits: Tensor, **inputs: Tensor
    ) -> Log:
        """Return the terms of one discriminator's loss; the penalty if there are `inputs`, `real` and `fake`."""
        terms = {"discr_loss": self.gan_loss(real=real_logits, fake=fake_logits).discriminator}
        if inputs and self.penalty is not NO_PENALTY:
            inputs |= {"real_logits": real_logits, "fake_logits": fake_logits}
            terms["grad_penalty_loss"] = self.penalty(discriminator=d.logits, generator=self.batch.generator, **inputs)
        for name in (name for name in self.logit_terms if self.weights[name] > 0):
            terms[f"{name}_loss"] = self.logit_terms[name][d.key](real=real_logits, fake=fake_logits)
        return terms

    def _discriminator_log(self, terms: Log, real_logits: Tensor, fake_logits: Tensor) -> Log:
        statistics = _logit_statistics(real=real_logits, fake=fake_logits, gan_loss=self.gan_loss)
        detached = {name: term.detach() for name, term in terms.items()}
        return {"loss": self.discriminator_loss(terms), **detached, **statistics}


def _can_share_backward(discriminator: nn.Module, logits: Tensor, x: Tensor) -> bool:
    """Return whether `shared_backward` applies: independent samples, one logit each, and no float16 cotangents."""
    is_independent = getattr(discriminator, "samples_are_independent", False)
    return is_independent and logits.ndim == 1 and logits.dtype != torch.float16 and x.requires_grad


@torch.no_grad()
def _logit_statistics(*, real: Tensor, fake: Tensor, gan_loss: GANLoss) -> Log:
    """Return mean and spread of the logits, the fractions that are right, and that of logits with a gradient."""
    real, fake = real.detach().float(), fake.detach().float()
    boundary, margin = gan_loss.boundary, gan_loss.margin
    flags = [real > fake] * 2 if boundary is None else [real > boundary, fake < boundary]
    flags += [] if margin is None else [real < margin, fake > -margin]
    accuracy_real, accuracy_fake, *active = torch.stack(flags).flatten(1).float().mean(1)
    log = {
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
        "logits_real_std": real.std(correction=0),
        "logits_fake_std": fake.std(correction=0),
        "accuracy_real": accuracy_real,
        "accuracy_fake": accuracy_fake,
    }
    if active:
        log["hinge_active"] = (active[0] + active[1]) / 2
    return log
