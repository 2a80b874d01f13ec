"""The GAN: the losses of the generator and of the discriminators, through an ordinary graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.precision import autocast_off
from telecine.base.shapes import Scalar, Video
from telecine.discriminators import DiscriminatorOutput, frozen
from telecine.losses import GANLoss, Penalty, feature_matching
from telecine.objective.batch import Batch
from telecine.objective.eager import with_gradient_hook
from telecine.objective.logging import Log, logit_statistics
from telecine.objective.video_discriminator import VideoDiscriminator
from telecine.objective.weights import Weights
from telecine.ops.convolution import differentiated_twice
from telecine.perceptual import sample_frame_indices

# The penalty of a step without one.
NO_PENALTY = Penalty(
    lambda: torch.zeros(()),
    differentiates_real=False,
    differentiates_fake=False,
    double_backward=False,
    uses_fake=False,
)


@dataclass
class AdversarialLosses:
    """The adversarial losses of one call: the generator's, then the discriminators'.

    A loss of the autoencoder's step gives no gradient to discriminators, and one of the discriminators' step none to
    the autoencoder.
    """

    discriminators: Sequence[VideoDiscriminator]
    gan_loss: GANLoss
    penalty: Penalty
    """`NO_PENALTY` in a step without one."""
    lecam: nn.ModuleDict
    discriminator_loss: Callable[[Log], Scalar]
    """The weighted sum of the terms of one discriminator."""
    batch: Batch
    weights: Weights
    is_eager: bool = field(default=False, init=False)
    """Whether the terms of the autoencoder's loss compute their gradients together with their values."""

    def generator_losses(self) -> dict[str, Log]:
        """Return the terms of each discriminator by its name: `d.term`, which is `g`, and "feature_matching".

        Those of weight 0 are left out.
        """
        frame_indices = {d.name: self._frame_indices() for d in self._in_generator_step()}
        fake = with_gradient_hook(self.batch.fake, self.batch.grad_hook)
        return {d.name: self._generator_step(d, fake, frame_indices[d.name]) for d in self._in_generator_step()}

    def _generator_step(self, d: VideoDiscriminator, fake: Video, frame_indices: Tensor) -> Log:
        d = d.given(self.batch.real, frame_indices)
        with frozen(d.module):
            return self._generator_terms(d, d(d.input_of(fake, frame_indices)), frame_indices)

    def _generator_terms(self, d: VideoDiscriminator, d_fake: DiscriminatorOutput, frame_indices: Tensor) -> Log:
        """Return `g` and the feature matching of one discriminator's output."""
        has_g, has_features = self.weights[d.term] > 0, self.weights["feature_matching"] > 0
        d_real = d_fake  # not used unless it is needed
        if has_features or (has_g and self.gan_loss.uses_real):
            with torch.no_grad():
                d_real = d(d.input_of(self.batch.real, frame_indices))
        terms = {}
        if has_g:
            terms[d.term] = self.gan_loss(real=d_real.logits.detach(), fake=d_fake.logits).generator
        if has_features:
            terms["feature_matching"] = feature_matching(real=d_real.features, fake=d_fake.features)
        return terms

    def discriminator_losses(self) -> dict[str, Log]:
        """Return the loss of each discriminator that trains at this step, its terms and its statistics, by name.

        Raises:
            ValueError: If there are no discriminators.
        """
        if not self.discriminators:
            remedy = "Build the loss with `discr_3d_kwargs` or `discr_kwargs`, or call it with `optimizer_idx=0`."
            raise argument_error("the step of the discriminators", "left out of a loss without any", "called", remedy)
        with self._precision():
            frame_indices = self._frame_indices()
            return {d.name: self._discriminator_step(d, frame_indices) for d in self._in_discriminator_step()}

    def _discriminator_step(self, d: VideoDiscriminator, frame_indices: Tensor) -> Log:
        d = d.given(self.batch.real, frame_indices)
        real, fake = (d.input_of(x, frame_indices).detach() for x in (self.batch.real, self.batch.fake))
        real.requires_grad_(self.penalty.differentiates_real)
        fake.requires_grad_(self.penalty.differentiates_fake)
        with differentiated_twice(self.penalty.double_backward):
            real_logits, fake_logits = d.logits(real), d.logits(fake)
        penalty = self._penalty(d, real, fake, real_logits, fake_logits)
        terms = self._discriminator_terms(d, real_logits, fake_logits, penalty)
        return self._log(terms, real_logits, fake_logits)

    def _discriminator_terms(
        self,
        d: VideoDiscriminator,
        real_logits: Tensor,
        fake_logits: Tensor,
        penalty: Callable[[], Scalar] | None = None,
    ) -> Log:
        terms = {"discr_loss": self.gan_loss(real=real_logits, fake=fake_logits).discriminator}
        if penalty is not None:
            terms["grad_penalty_loss"] = penalty()
        if self.weights["lecam"] > 0:
            terms["lecam_loss"] = self.lecam[d.key](real=real_logits, fake=fake_logits)
        return terms

    def _is_separable(self) -> bool:
        """Return whether a discriminator's loss is a sum of a real and a fake part."""
        return self.gan_loss.is_separable and self.weights["lecam"] == 0 and not self.penalty.uses_fake

    def _penalty(
        self, d: VideoDiscriminator, real: Tensor, fake: Tensor, real_logits: Tensor, fake_logits: Tensor
    ) -> Callable[[], Scalar] | None:
        """Return a function that computes the penalty, `None` if this step has none."""
        inputs = {"real": real, "fake": fake, "real_logits": real_logits, "fake_logits": fake_logits}
        if self.penalty is NO_PENALTY:
            return None
        return partial(self.penalty, discriminator=d.logits, **inputs, generator=self.batch.generator)

    def _log(self, terms: Log, real_logits: Tensor, fake_logits: Tensor) -> Log:
        """Return the loss of one discriminator, its terms, and statistics of its logits."""
        statistics = logit_statistics(real=real_logits, fake=fake_logits, gan_loss=self.gan_loss)
        loss = self.discriminator_loss(terms)
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}, **statistics}

    def _precision(self) -> AbstractContextManager[None]:
        """Turn autocast off for a penalty's double backward, and for the logits that it differentiates."""
        return autocast_off(self.batch.real.device) if self.penalty.double_backward else nullcontext()

    def _frame_indices(self) -> Tensor:
        """Draw the frame of each clip that discriminators of frames see, `(B, 1)`."""
        return sample_frame_indices(self.batch.real, 1, self.batch.generator)

    def _in_generator_step(self) -> list[VideoDiscriminator]:
        features_on = self.weights["feature_matching"] > 0
        return [d for d in self.discriminators if features_on or self.weights[d.term] > 0]

    def _in_discriminator_step(self) -> Sequence[VideoDiscriminator]:
        return self.discriminators if self.weights.discriminators_train else []
