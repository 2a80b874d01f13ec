"""The folder of a run, which one run at a time may write."""

from collections.abc import Sequence
from functools import partial

from accelerate import Accelerator

from telecine.base.files import mark_output
from telecine.data.find import check_output
from telecine.runs import Run
from telecine.runs.lock import RunLock
from telecine.settings import TrainConfig
from telecine.training.distributed import on_first_process


class LockedFolder:
    """The folder of a run, in which one run at a time may train: the first process has locked it until `release`.

    Args:
        config: The settings of the run.
        accelerator: The processes of the run, each of which has to make one.
        steal: Whether to take over the lock of another process.

    Raises:
        ValueError: If the folder is that of the data, another process trains in it, or it has links to other places.
    """

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, *, steal: bool = False
    ) -> None:
        self.files = Run(config.output_dir)
        self.lock: RunLock | None = None
        on_first_process(partial(self._take, config.data, steal=steal), accelerator)

    def _take(self, data: str | Sequence[str] | None, *, steal: bool) -> None:
        check_output("output_dir", data, str(self.files.folder))
        self.files.check_files()
        self.lock = RunLock(self.files.folder, steal=steal)
        mark_output(self.files.folder)

    def remove_residue(self) -> None:
        """Remove what an interrupted run has left half written."""
        if self.lock is not None:
            self.files.remove_residue(self.lock.taken_at)

    def release(self) -> None:
        """Let other processes train in the folder."""
        if self.lock is not None:
            self.lock.release()
