"""telecine trains video autoencoders: an objective, and the training run around it.

The names below are the public API. `train`, `evaluate` and `reconstruct` need the extra `telecine[train]`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from telecine.discriminators import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    DiscriminatorOutput,
    PatchDiscriminator,
    PatchDiscriminator3D,
    frame_gradients,
)
from telecine.imports import allow_code
from telecine.losses import gradient_penalty, kl_to_standard_normal, mse
from telecine.objective import Ramp, Term
from telecine.perceptual import LPIPS

if TYPE_CHECKING:
    from telecine.objective import VideoAutoencoderLoss

__version__ = "0.1.0"

# Imported on first use: the objective needs torchvision, which is slow to import, and the others need the extra.
_ON_FIRST_USE = {
    "EvaluateConfig": "telecine.evaluation.config",
    "ReconstructConfig": "telecine.evaluation.config",
    "TrainConfig": "telecine.training",
    "VideoAutoencoderLoss": "telecine.objective",
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
    "allow_code",
    "frame_gradients",
    "gradient_penalty",
    "kl_to_standard_normal",
    "mse",
]


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'telecine' has no attribute {name!r}")
    return getattr(import_module(_ON_FIRST_USE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
