"""The input of discriminators: their part of a video, a window of its frames, random changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32
from telecine.base.randomness import randint
from telecine.base.shapes import Video
from telecine.discriminators import DiscriminatorOutput, as_output, augment
from telecine.objective.batch import Batch
from telecine.objective.eager import with_gradient_hook
from telecine.perceptual import pick_frames
from telecine.settings import GANConfig, Need, ObjectiveTerm


@dataclass(frozen=True)
class VideoDiscriminator:
    """A discriminator together with the part of a video that is its input."""

    name: str
    module: nn.Module
    sees: str
    """"frames": one frame of each clip, `(B, C, H, W)`; "video": the clips, `(B, C, T, H, W)`."""
    factor: int = 1
    """Height and width are divided by this factor first."""
    term: str = "adversarial"
    """The term of the autoencoder's loss that its generator loss belongs to."""
    condition: Tensor | None = field(default=None, compare=False)
    """The second input of a discriminator that declares `conditional = True`: the inputs of the autoencoder."""

    @property
    def key(self) -> str:
        """The name as a key of a `ModuleDict`."""
        return self.name.replace(".", "_")

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that require gradients."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def input_of(self, video: Video, frame_indices: Tensor) -> Tensor:
        """Return the discriminator's input; `frame_indices` is `(B, 1)`."""
        if self.factor > 1:
            # Half-precision pooling of volumes is not implemented on the CPU.
            video = F.avg_pool3d(at_least_float32(video), (1, self.factor, self.factor), ceil_mode=True)
        return pick_frames(video, frame_indices) if self.sees == "frames" else video

    def given(self, real: Video, frame_indices: Tensor) -> VideoDiscriminator:
        """Return the discriminator of pairs with these real videos, without their graph; itself if unconditional."""
        if not getattr(self.module, "conditional", False):
            return self
        return replace(self, condition=self.input_of(real, frame_indices).detach())

    def __call__(self, x: Tensor) -> DiscriminatorOutput:
        """Return logits and features of an input, which is cast to the parameters' dtype."""
        parameter = next(self.module.parameters(), x)
        x = x.to(parameter.dtype)
        if self.condition is None:
            return as_output(self.module(x))
        # A penalty may pass several inputs of each clip, one batch after the other.
        condition = self.condition.repeat(len(x) // len(self.condition), *[1] * (x.ndim - 1))
        return as_output(self.module(x, condition))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of an input."""
        return self(x).logits

    def enable_gradient_checkpointing(self) -> None:
        """Make the module keep less for the backward.

        Raises:
            ValueError: If it has no such method.
        """
        enable = getattr(self.module, "enable_gradient_checkpointing", None)
        if enable is None:
            remedy = "Give the module a method `enable_gradient_checkpointing`, or turn it off."
            got = f"a {type(self.module).__name__} as `{self.name}`"
            raise argument_error("gradient_checkpointing", "False for discriminators without support", got, remedy)
        enable()


def check_discriminators(discriminators: Sequence[VideoDiscriminator], terms: Iterable[ObjectiveTerm]) -> None:
    """Check the kind of each discriminator, and the discriminators of each term.

    Raises:
        ValueError: If a discriminator declares another input, or a term lacks its discriminator.
    """
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


def windowed_and_augmented(batch: Batch, config: GANConfig) -> Batch:
    """Return the batch for discriminators, with `window` consecutive frames of each longer clip and random changes.

    Frames and changes are the same ones of a clip and of its reconstruction. The gradient hook still sees the gradient
    at the whole reconstruction.
    """
    starts = batch.real.shape[2] - config.window + 1 if config.window is not None else 1
    if starts <= 1 and not config.augment:
        return batch
    real, fake = batch.real, with_gradient_hook(batch.fake, batch.grad_hook)
    if starts > 1:
        device = real.device
        first = randint(starts, (len(real), 1), generator=batch.generator, device=device)
        indices = first + torch.arange(real.shape[2] - starts + 1, device=device)
        real, fake = (pick_frames(x, indices).unflatten(0, (len(x), -1)).transpose(1, 2) for x in (real, fake))
    real, fake = augment((real, fake), config.augment, batch.generator)
    return batch._replace(real=real, fake=fake, grad_hook=None)
