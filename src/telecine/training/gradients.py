"""The gradient at the reconstruction, measured as a backward passes it: which frames get it, and who causes it."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.report.curves import FRAME_GRADIENT

ADVERSARIAL_SHARE = "train/adversarial_gradient_share"


class ReconstructionGradient:
    """Holds what the last backward showed; the adaptive weight makes passes of its own before that one.

    A video's worth of memory and of arithmetic, and nothing waits for an accelerator.

    Args:
        reconstruction: `(B, C, T, H, W)` with a graph.
    """

    def __init__(self, reconstruction: Tensor) -> None:
        self.log: dict[str, Tensor] = {}
        self._adversarial: Tensor | None = None
        reconstruction.register_hook(self._see)

    def see_adversarial(self, gradient: Tensor) -> None:
        """Take in the part that the discriminators cause; a backward has it before the whole."""
        self._adversarial = gradient.detach()

    @torch.no_grad()
    def _see(self, gradient: Tensor) -> None:
        by_frame = frame_norms(gradient)
        frames = by_frame / by_frame.mean() if len(by_frame) > 1 else ()
        self.log = {f"{FRAME_GRADIENT}{index:03d}": share for index, share in enumerate(frames)}
        if self._adversarial is not None:
            adversarial = frame_norms(self._adversarial).norm()
            rest = frame_norms(gradient.float() - self._adversarial.float()).norm()
            self.log[ADVERSARIAL_SHARE] = adversarial / (adversarial + rest)
            self._adversarial = None


def frame_norms(gradient: Tensor) -> Tensor:
    """Return the float32 2-norm `(T,)` of each frame's part of a gradient `(B, C, T, H, W)`."""
    return torch.linalg.vector_norm(gradient.detach().float(), dim=(0, 1, 3, 4))


def is_about_gradients(name: str) -> bool:
    """Say whether a log key is of this file: a value without meaning, not finite, where there is no gradient."""
    return name == ADVERSARIAL_SHARE or name.startswith(FRAME_GRADIENT)
