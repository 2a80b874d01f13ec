"""The term that compares what a teacher's decoder makes of a student's latent with the video."""

from torch import Tensor, nn

from telecine.base.frozen import FrozenModule
from telecine.base.randomness import Generators
from telecine.base.shapes import Scalar, Video
from telecine.losses import l1
from telecine.losses.perceptual import LPIPS, as_rgb, pick_frames, sample_frame_indices
from telecine.losses.reconstruction import weighted_mean
from telecine.tools.distill.teacher import decode, load_teacher


class TeacherDecoding(nn.Module):
    """The error against the video of what a frozen teacher's decoder makes of a student's latent.

    Gradients pass through the frozen decoder into the student's encoder. The error is the mean absolute one and, with
    `perceptual_weight`, LPIPS of one random frame of each clip.

    Args:
        teacher: A model or a run.
        perceptual_weight: Weight of LPIPS (VGG) beside the mean absolute error; 0 leaves it out.
        decode_steps: Steps of a teacher that generates.
    """

    def __init__(self, teacher: str, perceptual_weight: float = 0.0, decode_steps: int = 1) -> None:
        super().__init__()
        self.teacher = FrozenModule(load_teacher(teacher, decode_steps))
        self.perceptual_weight = perceptual_weight
        self.perceptual = LPIPS("vgg") if perceptual_weight > 0 else None

    def forward(
        self,
        *,
        latent: Tensor,
        target: Video,
        generator: Generators = None,
        sample_weight: Tensor | None = None,
    ) -> Scalar:
        """Return the error, 0-d.

        Args:
            latent: The student's, `(B, C, t, h, w)`.
            target: The video that it encodes, `(B, C, T, H, W)` in [-1, 1].
            generator: Of the frames, and of the noise of a teacher that generates: one, or one for each clip; PyTorch's
                default generator if None.
            sample_weight: Weight of each clip, `(B,)`; None for 1.
        """
        decoded = decode(self.teacher.in_eval_mode(), latent, generator)
        error = l1(reconstruction=decoded, target=target, weight=sample_weight)
        if self.perceptual is None:
            return error
        indices = sample_frame_indices(target, 1, generator)
        distance = self.perceptual(
            reconstruction=as_rgb(pick_frames(decoded, indices)),
            target=as_rgb(pick_frames(target, indices)),
        )
        return error + self.perceptual_weight * weighted_mean(distance, sample_weight)
