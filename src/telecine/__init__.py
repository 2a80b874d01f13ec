"""telecine trains video autoencoders: an objective, and the training run around it.

The names below are the public API. `train`, `evaluate` and `reconstruct` need the extra `telecine[train]`.
"""

from importlib import import_module
from typing import Any

from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    DiscriminatorOutput,
    PatchDiscriminator,
    PatchDiscriminator3D,
    frame_gradients,
)
from telecine.losses import gradient_penalty, kl_to_standard_normal, mse
from telecine.objective import Ramp, Term, VideoAutoencoderLoss
from telecine.perceptual import LPIPS

__version__ = "0.1.0"

# Imported on first use, since the objective works without the extra.
_EXTRA = {
    "EvaluateConfig": "telecine.evaluation.config",
    "ReconstructConfig": "telecine.evaluation.config",
    "TrainConfig": "telecine.training",
    "evaluate": "telecine.evaluation.evaluate",
    "read_config": "telecine.training",
    "reconstruct": "telecine.evaluation.reconstruct",
    "train": "telecine.training",
}

__all__ = [
    "LPIPS",
    "Discriminator",
    "Discriminator3D",
    "Discriminator3DWithfirstframe",
    "DiscriminatorOutput",
    "PatchDiscriminator",
    "PatchDiscriminator3D",
    "Ramp",
    "Term",
    "VideoAutoencoderLoss",
    "frame_gradients",
    "gradient_penalty",
    "kl_to_standard_normal",
    "mse",
]


def __getattr__(name: str) -> Any:
    if name not in _EXTRA:
        raise AttributeError(f"module 'telecine' has no attribute {name!r}")
    return getattr(import_module(_EXTRA[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXTRA})
