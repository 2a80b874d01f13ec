"""A discriminator with its part of a video, and the check that each weight has its discriminator."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32
from telecine.base.shapes import Video
from telecine.discriminators import DiscriminatorOutput, as_output
from telecine.perceptual import pick_frames
from telecine.settings import Need, ObjectiveTerm


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

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of an input."""
        return self(x).logits

    def trained(self) -> list[nn.Parameter]:
        """Return the module's weights that are not frozen."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

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
