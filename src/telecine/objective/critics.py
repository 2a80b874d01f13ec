"""A discriminator together with what it is shown of a video, and how it is frozen while the autoencoder learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from telecine.perceptual import pick_frames
from telecine.precision import at_least_float32
from telecine.shapes import Frames, Video

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

    def judge(self, view: Tensor) -> Tensor:
        """Return the module's logits of a view, which is cast to the parameters' dtype."""
        parameter = next(self.module.parameters(), view)
        return self.module(view.to(parameter.dtype))


def whole_video(video: Video, frame_indices: Tensor) -> Video:
    """Show everything."""
    return video


def one_frame(video: Video, frame_indices: Tensor) -> Frames:
    """Show one frame of each clip, `(B, C, H, W)`."""
    return pick_frames(video, frame_indices)


def scaled_down(factor: int) -> View:
    """Return a view that shows the video with height and width divided by `factor` (means of cells)."""

    def see(video: Tensor, frame_indices: Tensor) -> Tensor:
        # Half-precision pooling of volumes is not implemented on the CPU.
        return F.avg_pool3d(at_least_float32(video), (1, factor, factor), ceil_mode=True)

    return see


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep parameters out of the graphs built inside; each `requires_grad` is afterwards what it was before."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
