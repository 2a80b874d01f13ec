"""The GAN: the generator's and the discriminators' losses, and how their gradients are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field
from enum import Enum, auto

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.precision import autocast_dtype, autocast_off
from telecine.base.randomness import randint
from telecine.base.shapes import Scalar, Video
from telecine.discriminators import augment, frozen
from telecine.losses import GANLoss, Penalty, feature_matching
from telecine.objective.batch import Batch
from telecine.objective.eager import (
    Gradients,
    can_share_backward,
    eager_backward,
    gradients_of,
    shared_backward,
    with_gradient_hook,
    with_gradients,
)
from telecine.objective.logging import Log, logit_statistics
from telecine.objective.terms import weighted
from telecine.objective.video_discriminator import VideoDiscriminator
from telecine.objective.weights import Weights
from telecine.ops.convolution import differentiated_twice
from telecine.perceptual import pick_frames, sample_frame_indices
from telecine.settings import Augmentation


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
class DiscriminatorUpdate:
    """The loss of one discriminator while its real and its fake part are computed one after the other."""

    frame_indices: Tensor
    """`(B, 1)`, the frame that a discriminator of single frames sees."""
    real_logits: Tensor
    penalty: Scalar | None
    """The value of the gradient penalty."""
    gradients: Gradients
    """Of the parts that are done, per parameter."""
    fake_logits: Tensor | None = None
    """`None` until the fake part is done."""


@dataclass
class AdversarialLosses:
    """The adversarial losses of one call: first the generator's, then the discriminators'."""

    discriminators: Sequence[VideoDiscriminator]
    """Those of frames and of videos."""
    multiscale: Sequence[VideoDiscriminator]
    """Those of down-scaled videos."""
    gan_loss: GANLoss
    penalty: Penalty | None
    """`None` in a step without a penalty."""
    lecam: nn.ModuleDict
    batch: Batch
    weights: Weights
    eager: InitVar[bool]
    both_steps: InitVar[bool]
    is_eager: bool = field(init=False)
    """Whether the terms of the autoencoder's loss compute their gradients together with their values."""
    mode: GradientMode = field(init=False)
    updates: dict[str, DiscriminatorUpdate] = field(default_factory=dict, init=False)

    def __post_init__(self, eager: bool, both_steps: bool) -> None:
        if not (self.weights.penalty > 0 and torch.is_grad_enabled()):
            self.penalty = None
        # float16 gradients would underflow: only the caller's scaler knows a suitable loss scale.
        self.is_eager = eager and autocast_dtype(self.batch.fake.device) != torch.float16
        self.mode = gradient_mode(self, eager=eager, both_steps=both_steps)

    @property
    def every(self) -> list[VideoDiscriminator]:
        """All discriminators."""
        return [*self.discriminators, *self.multiscale]

    def generator_losses(self) -> tuple[Log, Log, Log]:
        """Return `g_d`, `g_m` of the down-scaled videos, and the feature matching losses, by discriminator.

        Those whose weight is 0 are left out.

        The discriminators' parameters get no gradient, and the real videos have no graph. In SHARED mode this also
        computes the discriminators' losses, as far as the passes over the reconstructions serve both.
        """
        weights, batch = self.weights, self.batch
        features_on = weights.feature_matching > 0
        used = [
            *(self.discriminators if features_on or weights.adversarial > 0 else ()),
            *(self.multiscale if features_on or weights.multiscale > 0 else ()),
        ]
        frame_indices = {d.name: sample_frame_indices(batch.real, 1, batch.generator) for d in used}
        if self.mode is GradientMode.SHARED:
            self._start_updates(frame_indices)
        fake = with_gradient_hook(batch.fake, batch.grad_hook)
        logs = {d.name: self._generator_losses_of(d, fake, frame_indices[d.name]) for d in used}
        g, g_m = (
            {d.name: logs[d.name]["gen_loss"] for d in group if "gen_loss" in logs.get(d.name, {})}
            for group in (self.discriminators, self.multiscale)
        )
        return g, g_m, {name: log["feature_matching_loss"] for name, log in logs.items() if features_on}

    def _generator_losses_of(self, d: VideoDiscriminator, fake: Video, frame_indices: Tensor) -> Log:
        generator_on = (self.weights.multiscale if d in self.multiscale else self.weights.adversarial) > 0
        features_on = self.weights.feature_matching > 0
        needs_real = features_on or (generator_on and self.gan_loss.uses_real)
        update = self.updates.get(d.name)
        d = d.given(self.batch.real, frame_indices)

        def losses(x_fake: Tensor) -> list[Scalar]:
            d_fake = d_real = d(x_fake)  # `d_real` is not used unless it is needed
            if needs_real:
                with torch.no_grad():
                    d_real = d(d.input_of(self.batch.real, frame_indices))
            values = []
            if generator_on:
                values.append(self.gan_loss(real=d_real.logits.detach(), fake=d_fake.logits).generator)
            if features_on:
                values.append(feature_matching(real=d_real.features, fake=d_fake.features))
            if update is None:
                return values
            if generator_on and not self.gan_loss.uses_real and can_share_backward(d.module, d_fake.logits, x_fake):
                update.fake_logits = d_fake.logits.detach()
                grad_x, update.gradients = shared_backward(
                    self.gan_loss, d_fake.logits, x_fake, d.trainable, retain_graph=features_on, add_to=update.gradients
                )
                values[0] = with_gradients(values[0], [x_fake], [grad_x])
            else:
                self._add_fake_part(d, update, d_fake.logits)
            return values

        x_fake = d.input_of(fake, frame_indices)
        with frozen(d.module) if update is None else nullcontext():
            values = eager_backward(losses, x_fake) if self.is_eager else losses(x_fake)
        names = [name for name, on in (("gen_loss", generator_on), ("feature_matching_loss", features_on)) if on]
        return dict(zip(names, values, strict=True))

    def discriminator_losses(self) -> dict[str, Log]:
        """Return the loss of each discriminator that trains at this step, its terms and its statistics, by name.

        Raises:
            ValueError: If there are no discriminators.
        """
        if not self.every:
            remedy = "Build the loss with `discr_3d_kwargs` or `discr_kwargs`, or call it with `optimizer_idx=0`."
            raise argument_error("the step of the discriminators", "left out of a loss without any", "called", remedy)
        batch, penalty = self.batch, self.penalty
        # Neither a penalty's double backward nor the logits that it differentiates run under autocast.
        with autocast_off(batch.real.device) if penalty and penalty.double_backward else nullcontext():
            if self.mode is GradientMode.SPLIT:
                self._start_updates({})
            if self.mode in (GradientMode.SPLIT, GradientMode.SHARED):
                return {d.name: self._finish(d, self.updates[d.name]) for d in self._in_training()}
            frame_indices = sample_frame_indices(batch.real, 1, batch.generator)
            return {d.name: self._joint(d, frame_indices) for d in self._in_training()}

    def _discriminator_loss(
        self,
        d: VideoDiscriminator,
        real_logits: Tensor,
        fake_logits: Tensor,
        penalty: Callable[[], Scalar] | None = None,
    ) -> tuple[Scalar, Log]:
        """L_D of one discriminator, and its terms."""
        terms = {"discr_loss": self.gan_loss(real=real_logits, fake=fake_logits).discriminator}
        if penalty is not None:
            terms["grad_penalty_loss"] = penalty()
        if self.weights.lecam > 0:
            terms["lecam_loss"] = self.lecam[d.key](real=real_logits, fake=fake_logits)
        return terms["discr_loss"] + weighted(
            (self.weights.penalty, terms.get("grad_penalty_loss")),
            (self.weights.lecam, terms.get("lecam_loss")),
        ), terms

    def _joint(self, d: VideoDiscriminator, frame_indices: Tensor) -> Log:
        """JOINT and GRAPH: both parts in one graph."""
        penalty, d = self.penalty, d.given(self.batch.real, frame_indices)
        real, fake = (d.input_of(x, frame_indices).detach() for x in (self.batch.real, self.batch.fake))
        real.requires_grad_(penalty is not None and penalty.differentiates_real)
        fake.requires_grad_(penalty is not None and penalty.differentiates_fake)
        with differentiated_twice(penalty is not None and penalty.double_backward):
            real_logits, fake_logits = d.logits(real), d.logits(fake)
        compute = self._penalty(d, real, fake, real_logits, fake_logits)
        loss, terms = self._discriminator_loss(d, real_logits, fake_logits, compute)
        if self.mode is GradientMode.JOINT:
            loss = with_gradients(loss, d.trainable, gradients_of(loss, d.trainable))
        return self._log(loss, terms, real_logits, fake_logits)

    def _start_updates(self, frame_indices: Mapping[str, Tensor]) -> None:
        """SPLIT and SHARED, first the real part of every discriminator.

        The double backward of a penalty takes the most memory, so it runs before the fake part has any gradients.
        """
        common = sample_frame_indices(self.batch.real, 1, self.batch.generator)
        for d in self._in_training():
            self.updates[d.name] = self._real_part(d, frame_indices.get(d.name, common))

    def _real_part(self, d: VideoDiscriminator, frame_indices: Tensor) -> DiscriminatorUpdate:
        penalty, d = self.penalty, d.given(self.batch.real, frame_indices)
        real = d.input_of(self.batch.real, frame_indices).detach()
        real.requires_grad_(penalty is not None and penalty.differentiates_real)
        with differentiated_twice(penalty is not None and penalty.double_backward):
            logits = d.logits(real)
        compute = self._penalty(d, real, real, logits, logits)  # it does not use the fakes
        loss, terms = self._discriminator_loss(d, logits, logits.detach(), compute)
        value = terms.get("grad_penalty_loss")
        return DiscriminatorUpdate(
            frame_indices=frame_indices,
            real_logits=logits.detach(),
            penalty=None if value is None else value.detach(),
            gradients=gradients_of(loss, d.trainable),
        )

    def _add_fake_part(self, d: VideoDiscriminator, update: DiscriminatorUpdate, logits: Tensor) -> None:
        """Then the fake part. The graph is kept."""
        loss, _ = self._discriminator_loss(d, logits.detach(), logits)
        update.fake_logits = logits.detach()
        update.gradients = gradients_of(loss, d.trainable, retain_graph=True, add_to=update.gradients)

    def _finish(self, d: VideoDiscriminator, update: DiscriminatorUpdate) -> Log:
        """At last the loss, with the gradients of both parts."""
        if update.fake_logits is None:
            d = d.given(self.batch.real, update.frame_indices)
            fake = d.input_of(self.batch.fake.detach(), update.frame_indices)
            self._add_fake_part(d, update, d.logits(fake))
        assert update.fake_logits is not None
        value = update.penalty
        compute = None if value is None else lambda: value
        loss, terms = self._discriminator_loss(d, update.real_logits, update.fake_logits, compute)
        loss = with_gradients(loss, d.trainable, update.gradients)
        return self._log(loss, terms, update.real_logits, update.fake_logits)

    def _penalty(
        self, d: VideoDiscriminator, real: Tensor, fake: Tensor, real_logits: Tensor, fake_logits: Tensor
    ) -> Callable[[], Scalar] | None:
        """Return a function that computes the penalty, `None` if this step has none."""
        penalty = self.penalty
        if penalty is None:
            return None
        return lambda: penalty(
            discriminator=d.logits,
            real=real,
            fake=fake,
            real_logits=real_logits,
            fake_logits=fake_logits,
            generator=self.batch.generator,
        )

    def _log(self, loss: Scalar, terms: Log, real_logits: Tensor, fake_logits: Tensor) -> Log:
        statistics = logit_statistics(real=real_logits, fake=fake_logits, gan_loss=self.gan_loss)
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}, **statistics}

    def _in_training(self) -> list[VideoDiscriminator]:
        return self.every if self.weights.discriminators_train else []


def windowed(batch: Batch, num_frames: int | None) -> Batch:
    """Return the batch with `num_frames` consecutive frames of each clip, from a random one on, if it has more.

    The gradient hook still sees the gradient at the whole reconstruction.
    """
    starts = batch.real.shape[2] - num_frames + 1 if num_frames is not None else 1
    if num_frames is None or starts <= 1:
        return batch
    device = batch.real.device
    first = randint(starts, (len(batch.real), 1), generator=batch.generator, device=device)
    indices = first + torch.arange(num_frames, device=device)
    fake = with_gradient_hook(batch.fake, batch.grad_hook)
    real, fake = (pick_frames(x, indices).unflatten(0, (len(x), -1)).transpose(1, 2) for x in (batch.real, fake))
    return batch._replace(real=real, fake=fake, grad_hook=None)


def augmented(batch: Batch, augmentations: Sequence[Augmentation]) -> Batch:
    """Return the batch with random changes, the same ones of a clip and of its reconstruction.

    The gradient hook still sees the gradient at the reconstruction itself.
    """
    if not augmentations:
        return batch
    fake = with_gradient_hook(batch.fake, batch.grad_hook)
    real, fake = augment((batch.real, fake), augmentations, batch.generator)
    return batch._replace(real=real, fake=fake, grad_hook=None)


def gradient_mode(losses: AdversarialLosses, *, eager: bool, both_steps: bool) -> GradientMode:
    """Return how a call takes the gradients of the discriminators' losses.

    Args:
        losses: The batch, weights, discriminators, GAN loss and penalty of the call.
        eager: Whether gradients may be taken with the values.
        both_steps: Whether the call computes the losses of both steps.
    """
    gan_loss, penalty, weights, fake = losses.gan_loss, losses.penalty, losses.weights, losses.batch.fake
    autocast_to = autocast_dtype(fake.device)
    # A double backward turns autocast off for the discriminators' step, but not for the autoencoder's.
    is_float32 = autocast_to is None or (penalty is not None and penalty.double_backward)
    # Hooks on parameters would run for the eager gradients and again in the caller's backward.
    has_hooks = any(parameter._backward_hooks for d in losses.every for parameter in d.module.parameters())
    if not eager or has_hooks or (autocast_to == torch.float16 and not is_float32):
        return GradientMode.GRAPH
    if not gan_loss.is_separable or weights.lecam > 0 or (penalty is not None and penalty.uses_fake):
        return GradientMode.JOINT
    both_train = both_steps and fake.requires_grad and weights.discriminators_train and torch.is_grad_enabled()
    same_precision = autocast_to is None or not is_float32
    return GradientMode.SHARED if both_train and same_precision else GradientMode.SPLIT
