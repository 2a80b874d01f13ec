"""A discriminator together with what it is shown of a video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from telecine.discriminators import DiscriminatorOutput, as_output, build_discriminator
from telecine.objective.carry import Gradients, gradients_of
from telecine.perceptual import pick_frames
from telecine.precision import at_least_float32
from telecine.shapes import Frames, Scalar, Video, argument_error

View = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Critic:
    """A discriminator and its view of the video.

    `see(video, frame_indices)` maps a video `(B, C, T, H, W)`, and one frame index a clip `(B, 1)` where the view
    needs one, to the module's input.
    """

    name: str
    module: nn.Module
    see: View

    @property
    def key(self) -> str:
        """The name as a key of a `ModuleDict`."""
        return self.name.replace(".", "_")

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def gradients(self, loss: Scalar, *, retain_graph: bool = False, onto: Gradients | None = None) -> Gradients:
        """Return the gradients of a loss by parameter, None where it does not depend on one.

        They are added to those of another loss, `onto`, which leave the list.
        """
        return gradients_of(loss, self.trainable, retain_graph=retain_graph, onto=onto)

    @property
    def has_hooks(self) -> bool:
        """Whether somebody watches or changes the parameters' gradients in their backward."""
        return any(parameter._backward_hooks for parameter in self.module.parameters())

    def enable_gradient_checkpointing(self) -> None:
        """Let the module keep less for the backward.

        Raises:
            ValueError: If it does not know how to.
        """
        enable = getattr(self.module, "enable_gradient_checkpointing", None)
        if enable is None:
            remedy = "Give the module a method `enable_gradient_checkpointing`, or do without."
            got = f"a {type(self.module).__name__} as `{self.name}`"
            raise argument_error("gradient_checkpointing", "False for discriminators that have no way to", got, remedy)
        enable()

    def judge(self, view: Tensor) -> DiscriminatorOutput:
        """Return the module's logits and features of a view, which is cast to the parameters' dtype."""
        parameter = next(self.module.parameters(), view)
        return as_output(self.module(view.to(parameter.dtype)))


@dataclass
class Trial:
    """What is known of one discriminator's loss while its two parts, of real videos and of reconstructions, are taken
    one after the other.
    """

    frame_indices: Tensor
    """Of the frame `(B, 1)` that is looked at, where the discriminator is one of single frames."""
    real: Tensor
    """Logits of the real videos, without a graph."""
    penalty: Scalar | None
    """The gradient penalty on them, without a graph."""
    gradients: Gradients
    """Of the parts that are done, by parameter."""
    fake: Tensor | None = None
    """Logits of the reconstructions, without a graph, once their part is done."""


def build_critic(spec: Any, *, default: type[nn.Module], name: str, sees: str | None = None) -> nn.Module | None:
    """Return the discriminator that `spec` describes, or None for None.

    Raises:
        ValueError: If it says that it looks at something else than `sees`, "frames" or "video".
    """
    if spec is None:
        return None
    module = build_discriminator(spec, default=default, name=name)
    looks_at = getattr(module, "sees", sees)
    if sees is not None and looks_at != sees:
        remedy = "Give one of single frames as `discr_kwargs`, one of whole videos as `discr_3d_kwargs`."
        got = f"a {type(module).__name__}, which is one of {looks_at}"
        raise argument_error(name, f"a discriminator of {sees}", got, remedy)
    return module


def view_of(module: nn.Module) -> View:
    """Return the view of a discriminator that says what it looks at; the whole video for one that does not."""
    return one_frame if getattr(module, "sees", "video") == "frames" else whole_video


def whole_video(video: Video, frame_indices: Tensor) -> Video:
    """Show everything."""
    return video


def one_frame(video: Video, frame_indices: Tensor) -> Frames:
    """Show one frame of each clip, `(B, C, H, W)`."""
    return pick_frames(video, frame_indices)


def scaled_down(factor: int, see: View = whole_video) -> View:
    """Return a view that shows what `see` does of the video with height and width divided by `factor`."""

    def see_scaled(video: Tensor, frame_indices: Tensor) -> Tensor:
        # Means of cells. Half-precision pooling of volumes is not implemented on the CPU.
        return see(F.avg_pool3d(at_least_float32(video), (1, factor, factor), ceil_mode=True), frame_indices)

    return see_scaled
