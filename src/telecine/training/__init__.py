"""The training run around the objective. Needs the extra `train`."""

from telecine.base.checks import Interrupted, TrainingError
from telecine.training.run import train
from telecine.training.validation import TrainResult

__all__ = ["Interrupted", "TrainResult", "TrainingError", "train"]
