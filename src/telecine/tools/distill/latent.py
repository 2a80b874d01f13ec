"""The term that compares the latent of a student's encoder with its teacher's."""

import torch
from torch import Tensor, nn

from telecine.base.frozen import FrozenModule
from telecine.base.shapes import Scalar, Video
from telecine.losses import Gaussian
from telecine.losses.reconstruction import weighted_mean
from telecine.models import DiagonalGaussian
from telecine.tools.distill.teacher import load_teacher

_SMALLEST_VARIANCE = 1e-6


class TeacherLatent(nn.Module):
    """The mean squared distance of a posterior to a frozen teacher's, each channel in units of its variance.

    The distance of two normal distributions is that of Wasserstein, `(mean - mean')^2 + (std - std')^2`.
    A sample compared with the teacher's mean would train the student's deviation to 0. If the
    teacher's posterior is not normal, means are compared alone. A student's latent that is not sampled is compared with
    the teacher's mode.

    The variance is that of the teacher's mean over the batch. Without knowledge of the video the term is at least 1.

    Args:
        teacher: A model or a run.
    """

    def __init__(self, teacher: str) -> None:
        super().__init__()
        self.teacher = FrozenModule(load_teacher(teacher))

    def forward(
        self,
        *,
        latent: Tensor,
        target: Video,
        posterior: Gaussian | None = None,
        sample_weight: Tensor | None = None,
    ) -> Scalar:
        """Return the distance, 0-d.

        Args:
            latent: The student's, `(B, C, t, h, w)`.
            target: The video that it encodes, `(B, C, T, H, W)` in [-1, 1].
            posterior: The student's posterior, of the latent's shape; None if the latent is not sampled.
            sample_weight: Weight of each clip, `(B,)`; None for 1.
        """
        with torch.no_grad():
            expected = self.teacher.in_eval_mode().encode(target)
            mean = expected.mode()
            variance = mean.var((0, 2, 3, 4), correction=0, keepdim=True).clamp_min(
                _SMALLEST_VARIANCE
            )
        if posterior is None:
            return weighted_mean((latent - mean).square() / variance, sample_weight)
        distance = (posterior.mean - mean).square()
        if isinstance(expected, DiagonalGaussian):
            std = (0.5 * expected.logvar).exp()
            distance = distance + ((0.5 * posterior.logvar).exp() - std).square()
        return weighted_mean(distance / variance, sample_weight)
