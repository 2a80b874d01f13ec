"""A discriminator bound to its part of a video: how it is called, and which terms need it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Video
from telecine.discriminators import DiscriminatorOutput, as_output
from telecine.losses.perceptual import pick_frames
from telecine.ops.pass_options import differentiated_twice
from telecine.settings import DiscriminatorKind, TermSchedule


@dataclass(frozen=True)
class BoundDiscriminator:
    """A discriminator together with the part of a video that is its input."""

    name: str
    """Its name in the state dict and in the log: "discr", "discr_3d", "multiscale_discrs.0"."""
    module: nn.Module
    sees: str
    """"frames": one frame of each clip, `(B, C, H, W)`; "video": the clips, `(B, C, T, H, W)`."""
    factor: int = 1
    """Height and width of the video are divided by it first. Above 1, this is a multiscale discriminator."""

    @property
    def key(self) -> str:
        """The name as a key of a `ModuleDict`."""
        return self.name.replace(".", "_")

    @property
    def adversarial_term(self) -> str:
        """The name of the term that its generator loss belongs to."""
        if self.factor > 1:
            return "multiscale_adversarial"
        return "adversarial"

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that are not frozen."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def is_needed_by(self, term: TermSchedule) -> bool:
        """Return whether a term is computed with this discriminator."""
        kind = "multiscale discriminator" if self.factor > 1 else "full-size discriminator"
        return term.needs in (kind, "any discriminator")

    def input_of(self, video: Video, frame_indices: Tensor) -> Tensor:
        """Return the discriminator's input.

        Args:
            video: The clips `(B, C, T, H, W)`.
            frame_indices: The frame of each clip that a discriminator of frames gets, `(B, 1)`.
        """
        if self.factor > 1:
            # Half-precision pooling of volumes is not implemented on the CPU.
            video = F.avg_pool3d(
                at_least_float32(video), (1, self.factor, self.factor), ceil_mode=True
            )
        if self.sees == "video":
            return video
        return pick_frames(video, frame_indices)

    def __call__(self, x: Tensor, *, double_backward: bool = False) -> DiscriminatorOutput:
        """Return logits and features of an input, which is cast to the parameters' dtype.

        Args:
            x: The input, see `input_of`.
            double_backward: Whether a gradient of the output is differentiated, as by a penalty. Convolutions are then
                prepared for it.
        """
        parameter = next(self.module.parameters(), x)
        with differentiated_twice(double_backward):
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


def check_discriminators(
    discriminators: Sequence[BoundDiscriminator], terms: Iterable[TermSchedule]
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
    arguments: dict[DiscriminatorKind, str] = {
        "full-size discriminator": "`discr_3d_kwargs` or `discr_kwargs`",
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
