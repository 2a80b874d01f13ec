"""A run that is ready to train: its parts, and how it ends."""

import gc
from dataclasses import dataclass

from accelerate import Accelerator
from rich.console import Console
from torch import nn

from telecine.models.latent import Normalisation
from telecine.runs import Run
from telecine.runs.lock import RunLock
from telecine.settings import TrainConfig
from telecine.training.checkpoint import Checkpointer, best_step
from telecine.training.clips import Clips
from telecine.training.distributed import leave_context_group
from telecine.training.latent_cache import LatentCache
from telecine.training.logging import print_warnings
from telecine.training.records import Records
from telecine.training.state import TrainState


@dataclass
class TrainingRun:
    """The parts of a run that is ready to train."""

    config: TrainConfig
    """The settings, with the batch size as a number."""
    accelerator: Accelerator
    console: Console
    """It prints in the first process only."""
    files: Run
    """The run's folder."""
    lock: RunLock
    """The lock on the folder, which the first process holds."""
    is_custom: bool
    """Whether a custom module trains, whose memory cannot be planned."""
    clips: Clips
    state: TrainState
    checkpointer: Checkpointer
    records: Records
    latent_cache: LatentCache | None
    perceptual: dict[str, nn.Module]
    """The perceptual metrics of a validation by name."""
    linear_metrics: dict[str, float]
    """The metrics of the linear baseline, which are recorded with each validation; empty without one."""
    teacher_metrics: dict[str, float]
    """The metrics of a student's teacher; empty for a model without one."""
    first_normalisation: Normalisation
    """The normalisation of the latent at the start, which may be that of a checkpoint."""
    hub_repository: str | None
    """The repository for the upload, in the first process; `None` without an upload."""

    @property
    def is_main(self) -> bool:
        """Whether this is the first process."""
        return self.accelerator.is_main_process

    def remove_residue(self) -> None:
        """Remove what an interrupted run has left half written."""
        if self.lock.taken_at is not None:
            self.files.remove_residue(self.lock.taken_at)

    def remove_old_checkpoints(self) -> None:
        """Remove all checkpoints but the newest ones and the best one."""
        if self.is_main:
            best = best_step(self.files, self.config.best_metric, self.state.step)
            self.files.checkpoints.remove_old(keep=self.config.keep, best=best)

    def close(self) -> None:
        """Wait for the last checkpoint, flush the trackers, free the networks, and release the folder."""
        error = self.checkpointer.take_error()
        if error is not None:  # another error ended the run before this one was raised
            print_warnings(self.console, [str(error)])
        del self.state  # Gloo's threads can outlive the interpreter if a model's wrapper does
        self.accelerator.free_memory()
        gc.collect()
        leave_context_group()
        # Not by `end_training` of Accelerate, which also destroys the process group: that of a next run, or the user's.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.lock.release()
