"""The objective: what is added, with which weight, in which step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from telecine.objective.config import (
    AdaptiveWeightConfig,
    GANConfig,
    ObjectiveConfig,
    PenaltyConfig,
    PerceptualConfig,
    ReconstructionConfig,
)
from telecine.objective.terms import Term
from telecine.objective.weights import Ramp

if TYPE_CHECKING:
    from telecine.objective.video_autoencoder import Update, VideoAutoencoderLoss

__all__ = [
    "AdaptiveWeightConfig",
    "GANConfig",
    "ObjectiveConfig",
    "PenaltyConfig",
    "PerceptualConfig",
    "Ramp",
    "ReconstructionConfig",
    "Term",
    "Update",
    "VideoAutoencoderLoss",
]


def __getattr__(name: str) -> Any:
    """Import the objective on first use, since it imports torchvision, which takes longer than all else together."""
    if name not in ("Update", "VideoAutoencoderLoss"):
        raise AttributeError(f"module 'telecine.objective' has no attribute {name!r}")
    return getattr(import_module("telecine.objective.video_autoencoder"), name)
