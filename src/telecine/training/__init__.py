"""The training run around the objective. Needs the extra `train`."""

from telecine.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig
from telecine.training.config_file import read_config
from telecine.training.discriminator_config import DiscriminatorConfig
from telecine.training.interrupt import Interrupted
from telecine.training.run import train
from telecine.training.step import TrainingError
from telecine.training.trainable import TrainableConfig
from telecine.training.validation import TrainResult

__all__ = [
    "DiscriminatorConfig",
    "Interrupted",
    "ObjectiveConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrainResult",
    "TrainableConfig",
    "TrainingError",
    "read_config",
    "train",
]
