"""The term that compares the latent of a student's encoder with its teacher's."""

import torch
from torch import Tensor, nn

from telecine.base.frozen import Frozen
from telecine.base.shapes import Scalar, Video
from telecine.losses.reconstruction import weighted_mean
from telecine.tools.distill.teacher import load_teacher

_SMALLEST_VARIANCE = 1e-6


class TeacherLatent(nn.Module):
    """The mean squared error of a latent against a frozen teacher's, each channel in units of its variance.

    The variance is that of the teacher's latent over the batch. Without knowledge of the video the term is at least 1.

    Args:
        teacher: A model or a run.
    """

    def __init__(self, teacher: str) -> None:
        super().__init__()
        self.teacher = Frozen(load_teacher(teacher))

    def forward(self, *, latent: Tensor, target: Video, weight: Tensor | None = None) -> Scalar:
        """Return the error, 0-d.

        Args:
            latent: The student's, `(B, C, t, h, w)`.
            target: The video that it encodes, `(B, C, T, H, W)` in [-1, 1].
            weight: Weight of each clip, `(B,)`; None for 1.
        """
        with torch.no_grad():
            expected = self.teacher.module.encode(target).mode()
            variance = expected.var((0, 2, 3, 4), correction=0, keepdim=True).clamp_min(_SMALLEST_VARIANCE)
        return weighted_mean((latent - expected).square() / variance, weight)
