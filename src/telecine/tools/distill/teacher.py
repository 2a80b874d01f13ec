"""The teacher of a distillation: a frozen autoencoder, which may generate."""

from typing import TypeGuard

from torch import Tensor

from telecine.base.randomness import Generators
from telecine.base.shapes import Video
from telecine.models import LatentAutoencoder, VideoAutoencoder, load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder


def load_teacher(name: str, decode_steps: int = 1) -> VideoAutoencoder:
    """Return the autoencoder of a name; one that generates decodes in `decode_steps` steps."""
    teacher = load_autoencoder(name)
    if generates(teacher):
        teacher.set_decoding(steps=decode_steps)
    return teacher


def decode(teacher: VideoAutoencoder, latent: Tensor, generator: Generators) -> Video:
    """Return the video that a teacher decodes of a latent; one that has a `sampler` draws noise from `generator`."""
    if isinstance(teacher, LatentAutoencoder) and teacher.sampler is not None:
        return teacher.decode(latent, generator=generator)
    return teacher.decode(latent)


def generates(teacher: VideoAutoencoder) -> TypeGuard[CausalAutoencoder]:
    """Return whether a teacher has a decoder of telecine that makes video of noise."""
    return isinstance(teacher, CausalAutoencoder) and teacher.generates
