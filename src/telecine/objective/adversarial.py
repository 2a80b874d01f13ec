"""The GAN: the losses of the generator and of the discriminators, through an ordinary graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.shapes import Scalar, Video
from telecine.discriminators import DiscriminatorOutput, as_output, frozen
from telecine.losses import GANLoss, Penalty, feature_matching
from telecine.losses.perceptual import pick_frames, sample_frame_indices
from telecine.objective.batch import Batch
from telecine.objective.terms import check_result
from telecine.objective.weights import Log, Weights
from telecine.ops.convolution import differentiated_twice
from telecine.settings import Need, ObjectiveTerm

# The terms of the autoencoder's loss that discriminators cause.
GENERATOR_TERMS = ("adversarial", "multiscale_adversarial", "feature_matching")
# The penalty of a step without one, which is not called.
NO_PENALTY = Penalty(
    torch.zeros, differentiates_real=False, differentiates_fake=False, double_backward=False, uses_fake=False
)


@dataclass
class AdversarialLosses:
    """The adversarial losses of one call: the generator's, then the discriminators'.

    A loss of the autoencoder's step gives no gradient to discriminators, and one of theirs none to the autoencoder.
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
    is_eager: bool = field(default=False, init=False)  # whether its terms compute gradients together with values

    def generator_losses(self) -> dict[str, Log]:
        """Return each of `GENERATOR_TERMS` as a dict by discriminator, without those of weight 0."""
        return self._by_term({d.name: self._generator_step(d) for d in self._for_generator()})

    @staticmethod
    def _by_term(found: Mapping[str, Log]) -> dict[str, Log]:
        return {name: {d: terms[name] for d, terms in found.items() if name in terms} for name in GENERATOR_TERMS}

    def _for_generator(self) -> list[VideoDiscriminator]:
        """Return the discriminators with a generator's term or feature matching, each bound to one frame of a clip."""
        has_features = self.weights["feature_matching"] > 0
        on = [d for d in self.discriminators if has_features or self.weights[d.term] > 0]
        return [replace(d, frame_indices=self._one_frame_of_each_clip()) for d in on]

    def _one_frame_of_each_clip(self) -> Tensor:
        return sample_frame_indices(self.batch.disc_real, 1, self.batch.generator)

    def _generator_step(self, d: VideoDiscriminator) -> Log:
        with frozen(d.module):
            return self._generator_terms(d, d(d.input_of(self.batch.disc_fake)))

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

    def discriminator_losses(self) -> dict[str, Log]:
        """Return the loss of each discriminator that trains at this step, its terms and its statistics, by name."""
        if not self.discriminators:
            remedy = "Build the loss with `discr_3d_kwargs` or `discr_kwargs`, or call it with `optimizer_idx=0`."
            raise argument_error("the step of the discriminators", "left out of a loss without any", "called", remedy)
        # A penalty's double backward, and the logits that it differentiates, need float32.
        with autocast_off(self.batch.disc_real.device) if self.penalty.double_backward else nullcontext():
            frame_indices = self._one_frame_of_each_clip()
            on = self.discriminators if self.weights.discriminators_train else []
            return {d.name: self._discriminator_step(replace(d, frame_indices=frame_indices)) for d in on}

    def _discriminator_step(self, d: VideoDiscriminator) -> Log:
        real, real_logits = self._input_and_logits(d, self.batch.disc_real, self.penalty.differentiates_real)
        fake, fake_logits = self._input_and_logits(d, self.batch.disc_fake, self.penalty.differentiates_fake)
        terms = self._discriminator_terms(d, real_logits, fake_logits, real=real, fake=fake)
        return self._discriminator_log(terms, real_logits, fake_logits)

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
            penalty = self.penalty(discriminator=lambda x: d(x).logits, generator=self.batch.generator, **inputs)
            terms["grad_penalty_loss"] = check_result(self.penalty.function, penalty)
        for name in (name for name in self.logit_terms if self.weights[name] > 0):
            terms[f"{name}_loss"] = self.logit_terms[name][d.key](real=real_logits, fake=fake_logits)
        return terms

    def _discriminator_log(self, terms: Log, real_logits: Tensor, fake_logits: Tensor) -> Log:
        statistics = _logit_statistics(real=real_logits, fake=fake_logits, gan_loss=self.gan_loss)
        detached = {name: term.detach() for name, term in terms.items()}
        return {"loss": self.discriminator_loss(terms), **detached, **statistics}


@dataclass(frozen=True)
class VideoDiscriminator:
    """A discriminator together with the part of a video that is its input."""

    name: str
    module: nn.Module
    sees: str  # "frames": one frame of each clip, `(B, C, H, W)`; "video": the clips, `(B, C, T, H, W)`
    factor: int = 1  # height and width are divided by this factor first
    term: str = "adversarial"  # the term of the autoencoder's loss that its generator loss belongs to
    frame_indices: Tensor | None = field(default=None, compare=False)  # `(B, 1)`, of what one of frames sees

    @property
    def key(self) -> str:
        """The name as a key of a `ModuleDict`."""
        return self.name.replace(".", "_")

    def input_of(self, video: Video) -> Tensor:
        """Return the discriminator's input."""
        if self.factor > 1:
            # Half-precision pooling of volumes is not implemented on the CPU.
            video = F.avg_pool3d(at_least_float32(video), (1, self.factor, self.factor), ceil_mode=True)
        if self.sees == "video":
            return video
        assert self.frame_indices is not None
        return pick_frames(video, self.frame_indices)

    def __call__(self, x: Tensor) -> DiscriminatorOutput:
        """Return logits and features of an input, which is cast to the parameters' dtype."""
        parameter = next(self.module.parameters(), x)
        return as_output(self.module(x.to(parameter.dtype)))

    def enable_gradient_checkpointing(self) -> None:
        """Make the module keep less for the backward; raise a `ValueError` if it has no such method."""
        enable = getattr(self.module, "enable_gradient_checkpointing", None)
        if enable is None:
            remedy = "Give the module a method `enable_gradient_checkpointing`, or turn it off."
            got = f"a {type(self.module).__name__} as `{self.name}`"
            raise argument_error("gradient_checkpointing", "False for discriminators without support", got, remedy)
        enable()


def check_discriminators(discriminators: Sequence[VideoDiscriminator], terms: Iterable[ObjectiveTerm]) -> None:
    """Raise a `ValueError` if a discriminator declares another input, or a term lacks its discriminator."""
    for d in discriminators:
        declared = getattr(d.module, "sees", d.sees)
        if declared != d.sees:
            contract = f"a discriminator of {d.sees}"
            got = f"a {type(d.module).__name__}, which is one of {declared}"
            remedy = "Pass one of single frames as `discr_kwargs`, one of whole videos as `discr_3d_kwargs`."
            raise argument_error(f"{d.name}_kwargs", contract, got, remedy)
    multiscale = [d for d in discriminators if d.term == "multiscale_adversarial"]
    found: dict[Need, tuple[bool, str]] = {
        "discriminator": (len(multiscale) < len(discriminators), "`discr_3d_kwargs` or `discr_kwargs`"),
        "multiscale discriminator": (bool(multiscale), "`multiscale_discr_kwargs`"),
        "any discriminator": (bool(discriminators), "`discr_3d_kwargs`"),
    }
    for term in terms:
        is_there, argument = found[term.needs] if term.needs else (True, "")
        if term.ramp.is_ever_on and not is_there:
            remedy = f"Pass one as {argument}."
            raise argument_error(term.weight_key, "0 without a discriminator", term.ramp.weight, remedy)


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
