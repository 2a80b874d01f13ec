"""A student in the place of the autoencoder of a diffusers pipeline."""

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from telecine.models.latent import MEAN_KEY, STD_KEY
from telecine.models.student import StudentAutoencoder


class PipelineVAE(ModelMixin, nn.Module):
    """What a pipeline reads and calls of its `vae`, for a student of the pipeline's own: `pipe.vae = PipelineVAE(it)`.

    `config` has the sizes and the normalisation of the latent under the names of all classes.

    Args:
        student: A student of the pipeline's autoencoder.
    """

    def __init__(self, student: StudentAutoencoder) -> None:
        super().__init__()
        self.student = student
        config = student.config
        time = config.time_compression
        space = config.spatial_compression
        self.temporal_compression_ratio = time
        self.spatial_compression_ratio = space
        num_halvings = space.bit_length() - 1
        num_time_halvings = time.bit_length() - 1
        # With diffusers' spelling.
        self.temperal_downsample = [
            level >= num_halvings - num_time_halvings for level in range(num_halvings)
        ]
        normalisation = student.latent_normalisation()
        for name in (MEAN_KEY, STD_KEY):  # LTX has buffers
            if normalisation.get(name) is not None:
                self.register_buffer(name, torch.tensor(normalisation[name]), persistent=False)
        values = {
            "z_dim": config.latent_channels,
            "latent_channels": config.latent_channels,
            "block_out_channels": (1,) * (num_halvings + 1),  # pipelines read the length of these
            "encoder_block_out_channels": (1,) * (num_halvings + 1),
            "scale_factor_temporal": time,
            "scale_factor_spatial": space,
            "temporal_compression_ratio": time,
            "spatial_compression_ratio": space,
            "timestep_conditioning": False,
            "force_upcast": False,
            "scaling_factor": 1.0,
            **normalisation,
        }
        self.config = FrozenDict(values)

    @apply_forward_hook
    def decode(
        self, z: Tensor, temb: None = None, return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Return a video or images, as diffusers does.

        Args:
            z: The latent of a video, `(B, C, t, h, w)`, or of images, `(B, C, h, w)`.
            temb: Not used.
            return_dict: Whether the output is a `DecoderOutput`; else it is a tuple.
            generator: Not used.
        """
        is_video = z.ndim == 5
        video = self.student.decode(z if is_video else z[:, :, None])
        sample = video if is_video else video[:, :, 0]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Return what the `encode` of the teacher, a diffusers model, returns.

        Args:
            x: The video, `(B, C, T, H, W)`.
            return_dict: As of the teacher.
        """
        teacher: Any = self.student.latent_model
        return teacher.module.encode(x.to(teacher.module.dtype), return_dict=return_dict)
