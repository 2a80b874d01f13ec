"""The settings of all commands, and how they are read. Needs no PyTorch."""

from telecine.settings.autoencoder import CausalVAEConfig
from telecine.settings.data import MAX_PIXELS, TIMEOUT, Bucket, ClipConfig
from telecine.settings.discriminators import MIN_SIZES, DiscriminatorConfig, FeaturesConfig
from telecine.settings.evaluate import (
    EvaluateConfig,
    LatentsConfig,
    MeasuredClips,
    ProtocolName,
    ReconstructConfig,
    SavedWeights,
    Tiling,
    check_overlap,
)
from telecine.settings.objective import (
    AdaptiveWeightConfig,
    Augmentation,
    GANConfig,
    Need,
    ObjectiveConfig,
    ObjectiveTerm,
    PenaltyConfig,
    PerceptualConfig,
    Ramp,
    ReconstructionConfig,
    Term,
    Weight,
)
from telecine.settings.train import MAX_FAILURES, DistillConfig, OptimizerConfig, TrainableConfig, TrainConfig

__all__ = [
    "MAX_FAILURES",
    "MAX_PIXELS",
    "MIN_SIZES",
    "TIMEOUT",
    "AdaptiveWeightConfig",
    "Augmentation",
    "Bucket",
    "CausalVAEConfig",
    "ClipConfig",
    "DiscriminatorConfig",
    "DistillConfig",
    "EvaluateConfig",
    "FeaturesConfig",
    "GANConfig",
    "LatentsConfig",
    "MeasuredClips",
    "Need",
    "ObjectiveConfig",
    "ObjectiveTerm",
    "OptimizerConfig",
    "PenaltyConfig",
    "PerceptualConfig",
    "ProtocolName",
    "Ramp",
    "ReconstructConfig",
    "ReconstructionConfig",
    "SavedWeights",
    "Term",
    "Tiling",
    "TrainConfig",
    "TrainableConfig",
    "Weight",
    "check_overlap",
]
