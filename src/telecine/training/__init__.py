"""The training run around the objective. Needs the extra `train`.

`run.train` calls, in this order: `prepare.prepare`, which asks `start.find_start` for the checkpoint to resume from and
builds the model, the clips, the state and the records with `build.py`, `clips.py`, `state.py` and `records.py`; then
`loop.train_to_the_end`, whose updates are `step.train_step`; then `run.finish`, which writes the report.
"""

from telecine.base.checks import Interrupted, TrainingError
from telecine.training.run import TrainResult, train

__all__ = ["Interrupted", "TrainResult", "TrainingError", "train"]
