"""The training run around the objective. Needs the extra `train`."""

from telecine.base.checks import Interrupted, TrainingError
from telecine.training.run import TrainResult, train

__all__ = ["Interrupted", "TrainResult", "TrainingError", "train"]
