"""The GAN: the terms of the autoencoder's loss and of the discriminators' losses, from each discriminator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32, autocast_off
from telecine.base.randomness import Generators
from telecine.base.shapes import Scalar, Video
from telecine.discriminators import DiscriminatorOutput, as_output
from telecine.losses import GANLoss, Penalty
from telecine.losses.perceptual import pick_frames, sample_frame_indices
from telecine.objective.functions import check_result
from telecine.objective.terms import LossTerm, Terms
from telecine.objective.weights import Weights
from telecine.ops.convolution import differentiated_twice
from telecine.settings import Need, TermSchedule


@dataclass(frozen=True)
class VideoDiscriminator:
    """A discriminator together with the part of a video that is its input."""

    name: str
    module: nn.Module
    sees: str  # "frames": one frame of each clip, `(B, C, H, W)`; "video": the clips, `(B, C, T, H, W)`
    kind: Need = "discriminator"  # which terms need it
    factor: int = 1  # height and width are divided by this factor first
    # The frame of each clip that a discriminator of frames gets, `(B, 1)`.
    frame_indices: Tensor | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """The name as a key of a `ModuleDict`."""
        return self.name.replace(".", "_")

    @property
    def adversarial_term(self) -> str:
        """The name of the term that its generator loss belongs to."""
        if self.kind == "multiscale discriminator":
            return "multiscale_adversarial"
        return "adversarial"

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that are not frozen."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def is_needed_by(self, term: TermSchedule) -> bool:
        """Return whether a term is computed with this discriminator."""
        return term.needs in (self.kind, "any discriminator")

    def input_of(self, video: Video) -> Tensor:
        """Return the discriminator's input."""
        if self.factor > 1:
            # Half-precision pooling of volumes is not implemented on the CPU.
            video = F.avg_pool3d(
                at_least_float32(video), (1, self.factor, self.factor), ceil_mode=True
            )
        if self.sees == "video":
            return video
        assert self.frame_indices is not None
        return pick_frames(video, self.frame_indices)

    def __call__(self, x: Tensor) -> DiscriminatorOutput:
        """Return logits and features of an input, which is cast to the parameters' dtype."""
        parameter = next(self.module.parameters(), x)
        return as_output(self.module(x.to(parameter.dtype)))

    def enable_gradient_checkpointing(self) -> None:
        """Make the module keep less for the backward.

        Raises:
            ValueError: The module has no such method.
        """
        enable = getattr(self.module, "enable_gradient_checkpointing", None)
        if enable is None:
            remedy = "Give the module a method `enable_gradient_checkpointing`, or turn it off."
            got = f"a {type(self.module).__name__} as `{self.name}`"
            raise argument_error(
                "gradient_checkpointing", "False for discriminators without support", got, remedy
            )
        enable()


@dataclass(frozen=True)
class GAN:
    """The GAN in one call: the discriminators, their inputs, and the terms whose weight is above 0 at this step."""

    discriminators: Sequence[VideoDiscriminator]
    real: Video
    fake: Video
    loss: GANLoss
    autoencoder_terms: Sequence[LossTerm]
    """The terms of the autoencoder's loss that are computed with a discriminator."""
    penalty: Penalty | None
    """The gradient penalty in each discriminator's loss; None in a step without one."""
    lecam: nn.ModuleDict | None
    """The `LeCam` regularisation of each discriminator by its key; None in a step without it."""
    weights: Weights
    """The weights of all terms at this step, and whether the discriminators train."""
    rng: Generators
    """The source of random numbers."""

    @property
    def has_double_backward(self) -> bool:
        """Whether the penalty differentiates a gradient of the discriminator."""
        return self.penalty is not None and self.penalty.double_backward

    @property
    def regularisers_read_fake(self) -> bool:
        """Whether a term of the discriminators' loss beside the GAN loss reads fake inputs or logits."""
        return self.lecam is not None or (self.penalty is not None and self.penalty.reads_fake)

    def one_frame_of_each_clip(self) -> Tensor:
        """Draw the frames `(B, 1)` that discriminators of frames see."""
        return sample_frame_indices(self.real, 1, self.rng)

    def autoencoder_terms_of(self, d: VideoDiscriminator) -> list[LossTerm]:
        """Return the terms of the autoencoder's loss that are computed with a discriminator."""
        return [term for term in self.autoencoder_terms if d.is_needed_by(term.schedule)]

    def precision_of_discriminators(self) -> AbstractContextManager[None]:
        """Return the context of the discriminators' step: a double backward, and its logits, need float32."""
        if self.has_double_backward:
            return autocast_off(self.real.device)
        return nullcontext()


def compute_generator_terms(
    d: VideoDiscriminator, gan: GAN, *, d_fake: DiscriminatorOutput
) -> Terms:
    """Return the terms of the autoencoder's loss from one discriminator, by name.

    Args:
        d: The discriminator. It is evaluated on the real clips, without a graph, if a term reads its output for them.
        gan: The terms that count at this step.
        d_fake: Its output for the reconstructions.
    """
    terms = gan.autoencoder_terms_of(d)
    inputs: dict[str, object] = {"fake_logits": d_fake.logits, "fake_features": d_fake.features}
    if any(name in ("real_logits", "real_features") for term in terms for name in term.arguments):
        with torch.no_grad():
            d_real = d(d.input_of(gan.real))
        inputs |= {"real_logits": d_real.logits, "real_features": d_real.features}
    return {term.name: term(**inputs) for term in terms}


class DiscriminatorTerms(NamedTuple):
    """The terms of one discriminator's loss by name, and the logits of both sides."""

    terms: Terms
    real_logits: Tensor | None
    fake_logits: Tensor | None


def compute_discriminator_terms(
    d: VideoDiscriminator, gan: GAN, *, fake: Tensor | None, real: Tensor | None
) -> DiscriminatorTerms:
    """Return the terms of one discriminator's loss.

    With one of the inputs, these are the real part or the fake part of a separable loss. The penalty is in the real
    part.

    Args:
        d: The discriminator.
        gan: The terms that count at this step.
        fake: The discriminator's input of the reconstructions, or None.
        real: That of the real clips, or None.
    """
    real_logits: Tensor | None = None
    fake_logits: Tensor | None = None
    penalty = gan.penalty if real is not None else None
    with differentiated_twice(penalty is not None and penalty.double_backward):
        if real is not None:
            real = real.detach().requires_grad_(
                penalty is not None and penalty.differentiates("real")
            )
            real_logits = d(real).logits
        if fake is not None:
            fake = fake.detach().requires_grad_(
                penalty is not None and penalty.differentiates("fake")
            )
            fake_logits = d(fake).logits
    terms = {
        "discr": gan.loss.compute_discriminator_loss(
            real_logits=real_logits, fake_logits=fake_logits
        )
    }
    if penalty is not None:
        value = penalty(
            discriminator=lambda x: d(x).logits,
            real=real,
            fake=fake,
            real_logits=real_logits,
            fake_logits=fake_logits,
            generator=gan.rng,
        )
        terms["grad_penalty"] = check_result(penalty.function, value)
    if gan.lecam is not None:
        assert real_logits is not None
        assert fake_logits is not None
        terms["lecam"] = gan.lecam[d.key](real=real_logits, fake=fake_logits)
    return DiscriminatorTerms(terms, real_logits, fake_logits)


def weighted_sum(terms: Terms, weights: Weights) -> Scalar:
    """Return the loss of one discriminator, or a part of it: `discr`, and each other term times its weight."""
    regularisers = dict(terms)
    gan_loss = regularisers.pop("discr")
    return gan_loss + weights.sum(regularisers)


def check_discriminators(
    discriminators: Sequence[VideoDiscriminator], terms: Iterable[TermSchedule]
) -> None:
    """Check that each discriminator has the input that its argument is for, and each term its discriminator.

    Raises:
        ValueError: A discriminator declares another input, or a term lacks its discriminator.
    """
    for d in discriminators:
        declared = getattr(d.module, "sees", d.sees)
        if declared != d.sees:
            contract = f"a discriminator of {d.sees}"
            got = f"a {type(d.module).__name__}, which is one of {declared}"
            remedy = "Pass one of single frames as `discr_kwargs`, one of whole videos as `discr_3d_kwargs`."
            raise argument_error(f"{d.name}_kwargs", contract, got, remedy)
    arguments: dict[Need, str] = {
        "discriminator": "`discr_3d_kwargs` or `discr_kwargs`",
        "multiscale discriminator": "`multiscale_discr_kwargs`",
        "any discriminator": "`discr_3d_kwargs`",
    }
    for term in terms:
        if term.needs is None or not term.ramp.is_ever_on:
            continue
        if not any(d.is_needed_by(term) for d in discriminators):
            remedy = f"Pass one as {arguments[term.needs]}."
            raise argument_error(
                term.weight_key, "0 without a discriminator", term.ramp.weight, remedy
            )
