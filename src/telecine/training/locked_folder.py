"""The folder of a run, which one run at a time may write."""

from collections.abc import Sequence
from functools import partial

from accelerate import Accelerator

from telecine.base.files import mark_output
from telecine.data.outputs import check_output
from telecine.runs import Run
from telecine.runs.lock import RunLock
from telecine.training.distributed import on_first_process


class LockedFolder:
    """The folder of a run, in which one run at a time may train: the first process locks it until `release`.

    Args:
        folder: `TrainConfig.output_dir`.
    """

    def __init__(self, folder: str) -> None:
        self.files = Run(folder)
        self._lock: RunLock | None = None

    def lock(
        self, data: str | Sequence[str] | None, accelerator: Accelerator, *, steal: bool = False
    ) -> None:
        """Create the folder if needed, and lock it. Every process has to call this.

        Args:
            data: `TrainConfig.data`.
            accelerator: The processes of the run.
            steal: Whether to take over the lock of another process.

        Raises:
            ValueError: If the folder holds the data, another process trains in it, or it has links to other
                places.
        """
        on_first_process(partial(self._lock_here, data, steal=steal), accelerator)

    def _lock_here(self, data: str | Sequence[str] | None, *, steal: bool) -> None:
        check_output("output_dir", data, str(self.files.folder))
        self.files.check_files()
        self._lock = RunLock(self.files.folder, steal=steal)
        mark_output(self.files.folder)

    def remove_residue(self) -> None:
        """Remove what an interrupted run has left half written."""
        if self._lock is not None:
            self.files.remove_residue(self._lock.taken_at)

    def release(self) -> None:
        """Let other processes train in the folder."""
        if self._lock is not None:
            self._lock.release()
