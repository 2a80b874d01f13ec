"""The teacher of a distillation: a frozen autoencoder, which may generate."""

from typing import TypeGuard

from telecine.models import LatentAutoencoder, VideoAutoencoder, load_autoencoder
from telecine.models.causal_autoencoder import CausalAutoencoder


def load_teacher(name: str, decode_steps: int = 1) -> VideoAutoencoder:
    """Return the autoencoder of a name; one that generates decodes in `decode_steps` steps."""
    teacher = load_autoencoder(name)
    if generates(teacher):
        teacher.set_decoding(steps=decode_steps)
    return teacher


def draws_noise(teacher: VideoAutoencoder) -> TypeGuard[LatentAutoencoder]:
    """Return whether a teacher's decoder has a `sampler`, and so draws the noise that it decodes with."""
    return isinstance(teacher, LatentAutoencoder) and teacher.sampler is not None


def generates(teacher: VideoAutoencoder) -> TypeGuard[CausalAutoencoder]:
    """Return whether a teacher has a decoder of telecine that makes video of noise."""
    return isinstance(teacher, CausalAutoencoder) and teacher.generates
