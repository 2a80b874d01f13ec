"""The term that compares a student's reconstruction with its teacher's."""

import torch
from torch import Tensor, nn

from telecine.base.frozen import FrozenModule
from telecine.base.randomness import Generators
from telecine.base.shapes import Scalar, Video
from telecine.losses import l1
from telecine.tools.distill.teacher import decode, load_teacher


class TeacherReconstruction(nn.Module):
    """The mean absolute error against the reconstruction of a frozen teacher from the same latent.

    A teacher that generates decodes random noise.

    Args:
        teacher: A model or a run.
        decode_steps: Steps of a teacher that generates.
    """

    def __init__(self, teacher: str, decode_steps: int = 1) -> None:
        super().__init__()
        self.teacher = FrozenModule(load_teacher(teacher, decode_steps))

    def forward(
        self,
        *,
        reconstruction: Video,
        latent: Tensor,
        generator: Generators = None,
        weight: Tensor | None = None,
    ) -> Scalar:
        """Return the error, 0-d.

        Args:
            reconstruction: The student's, `(B, C, T, H, W)`.
            latent: What both decode, `(B, C, t, h, w)`.
            generator: Of the noise: one, or one for each clip; PyTorch's default generator if None.
            weight: Weight of each clip, `(B,)`; None for 1.
        """
        with torch.no_grad():
            target = decode(self.teacher.in_eval_mode(), latent, generator)
        return l1(reconstruction=reconstruction, target=target, weight=weight)
