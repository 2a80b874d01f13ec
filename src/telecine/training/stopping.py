"""All processes of a run stop together, on request or after an error of one of them, and save a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from telecine.base.checks import Interrupted
from telecine.training.distributed import any_rank
from telecine.training.interrupt import StopRequest
from telecine.training.logging import print_lines
from telecine.training.training_run import TrainingRun


class StopTogether(Protocol):
    """Ends a block of `saved_on_stop` on every process if one of them has to stop."""

    def __call__(self, error: Exception | None = None) -> None:
        """Ask all processes, and end the block if one has to stop. Every process has to call this equally often: they
        wait for each other here.

        Args:
            error: An error of this process, such as that of a clip that cannot be read.
        """


class _Stopped(Exception):  # noqa: N818 - a message from `_stop_together` to `saved_on_stop`
    """All processes have agreed to stop.

    Args:
        error: The error of this process, if it has one.
    """

    def __init__(self, error: Exception | None) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def saved_on_stop(run: TrainingRun, stop: StopRequest) -> Iterator[StopTogether]:
    """Yield a function that ends the block on every process: on request, after an error, or if a checkpoint failed.

    The run is then saved. Contexts inside of the block, such as that of the averaged weights, have ended by then.

    Args:
        run: The run.
        stop: The request to stop. It may be set on one process only.

    Raises:
        Interrupted: The run has stopped, and this process has no error. The checkpoint is written.
        Exception: The error of this process.
    """
    try:
        yield partial(_stop_together, run, stop)
    except _Stopped as stopped:
        checkpoint = None
        if run.state.step > 0:
            checkpoint = run.checkpointer.save(run.state)
        run.checkpointer.wait()
        if stopped.error is None:
            raise Interrupted(checkpoint) from None
        saved = checkpoint or "nothing"
        print_lines(run.console, [f"cannot read the clips of step {run.state.step}; saved {saved}"])
        raise stopped.error from stopped.error.__cause__  # not from `_Stopped`


def _stop_together(run: TrainingRun, stop: StopRequest, error: Exception | None = None) -> None:
    has_to_stop = stop.is_set or error is not None or run.checkpointer.has_failed
    if any_rank(has_to_stop, run.accelerator.device):
        raise _Stopped(error)
