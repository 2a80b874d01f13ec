"""telecine trains video autoencoders: an objective, and the training run around it.

The names below are the public API. `train`, `evaluate` and `reconstruct` need the extra `train`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from telecine.base.imports import allow_code as allow_code
    from telecine.discriminators import Discriminator as Discriminator
    from telecine.discriminators import Discriminator3D as Discriminator3D
    from telecine.discriminators import Discriminator3DWithfirstframe as Discriminator3DWithfirstframe
    from telecine.discriminators import DiscriminatorOutput as DiscriminatorOutput
    from telecine.discriminators import PatchDiscriminator as PatchDiscriminator
    from telecine.discriminators import PatchDiscriminator3D as PatchDiscriminator3D
    from telecine.discriminators import frame_gradients as frame_gradients
    from telecine.evaluation.evaluate import evaluate as evaluate
    from telecine.evaluation.reconstruct import reconstruct as reconstruct
    from telecine.losses import gradient_penalty as gradient_penalty
    from telecine.losses import kl_to_standard_normal as kl_to_standard_normal
    from telecine.losses import mse as mse
    from telecine.objective import VideoAutoencoderLoss as VideoAutoencoderLoss
    from telecine.perceptual import LPIPS as LPIPS
    from telecine.settings import EvaluateConfig as EvaluateConfig
    from telecine.settings import Ramp as Ramp
    from telecine.settings import ReconstructConfig as ReconstructConfig
    from telecine.settings import Term as Term
    from telecine.settings import TrainConfig as TrainConfig
    from telecine.settings.parse import read_config as read_config
    from telecine.training import train as train

__version__ = "0.1.0"

# The module of each name, which is imported on first use: `telecine --version` need not wait for PyTorch, the objective
# needs torchvision, and `train`, `evaluate` and `reconstruct` need the extra.
_MODULES = {
    name: f"telecine.{module}"
    for module, names in {
        "training": ["train"],
        "evaluation.evaluate": ["evaluate"],
        "evaluation.reconstruct": ["reconstruct"],
        "settings": ["TrainConfig", "EvaluateConfig", "ReconstructConfig", "Term", "Ramp"],
        "settings.parse": ["read_config"],
        "objective": ["VideoAutoencoderLoss"],
        "perceptual": ["LPIPS"],
        "discriminators": [
            *("Discriminator", "Discriminator3D", "Discriminator3DWithfirstframe", "DiscriminatorOutput"),
            *("PatchDiscriminator", "PatchDiscriminator3D", "frame_gradients"),
        ],
        "losses": ["gradient_penalty", "kl_to_standard_normal", "mse"],
        "base.imports": ["allow_code"],
    }.items()
    for name in names
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'telecine' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
