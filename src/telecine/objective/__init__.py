"""The objective: what is added, with which weight, in which step."""

from telecine.objective.config import (
    AdaptiveWeightConfig,
    GANConfig,
    ObjectiveConfig,
    PenaltyConfig,
    PerceptualConfig,
    ReconstructionConfig,
)
from telecine.objective.terms import Term
from telecine.objective.video_autoencoder import Update, VideoAutoencoderLoss
from telecine.objective.weights import Ramp

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
