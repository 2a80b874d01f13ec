"""A student in the place of the autoencoder of a diffusers pipeline."""

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from telecine.models.latent import CHANNEL_KEYS
from telecine.models.student import StudentAutoencoder


class PipelineVAE(ModelMixin, nn.Module):
    """What a pipeline reads and calls of its `vae`, for a student of the pipeline's own: `pipe.vae = PipelineVAE(it)`.

    `config` has the sizes and the normalisation of the latent under the names of all classes.
    """

    def __init__(self, student: StudentAutoencoder) -> None:
        super().__init__()
        self.student = student
        time, space = student.config.time_compression, student.config.spatial_compression
        ratios = {"temporal_compression_ratio": time, "spatial_compression_ratio": space}
        vars(self).update(ratios)
        halvings, in_time = (factor.bit_length() - 1 for factor in (space, time))
        self.temperal_downsample = [level >= halvings - in_time for level in range(halvings)]  # diffusers' spelling
        normalisation = student.latent_normalisation()
        for name in CHANNEL_KEYS:  # LTX has buffers
            if normalisation.get(name) is not None:
                self.register_buffer(name, torch.tensor(normalisation[name]), persistent=False)
        self.config = FrozenDict(
            z_dim=student.config.latent_channels,
            latent_channels=student.config.latent_channels,
            block_out_channels=(1,) * (halvings + 1),  # pipelines read the length of these
            encoder_block_out_channels=(1,) * (halvings + 1),
            scale_factor_temporal=time,
            scale_factor_spatial=space,
            timestep_conditioning=False,
            force_upcast=False,
            **{"scaling_factor": 1.0, **ratios, **normalisation},
        )

    @apply_forward_hook
    def decode(
        self, z: Tensor, temb: None = None, return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Return the video of a latent `(B, C, t, h, w)`, or the images of `(B, C, h, w)`, as diffusers does."""
        video = self.student.decode(z) if z.ndim == 5 else self.student.decode(z[:, :, None])[:, :, 0]
        return DecoderOutput(sample=video) if return_dict else (video,)

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Return what the `encode` of the teacher, a diffusers model, returns."""
        teacher: Any = self.student.latent_model
        return teacher.module.encode(x.to(teacher.module.dtype), return_dict=return_dict)
