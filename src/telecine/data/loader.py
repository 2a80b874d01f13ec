"""The batches of a run, read by worker processes that may die without ending it."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from telecine.data.clips import ClipDataset
from telecine.data.errors import DataError
from telecine.shapes import argument_error

logger = logging.getLogger(__name__)

# So often in a row, without a batch in between, workers die of what they read and not of what happens around them.
MAX_DEATHS = 3
# How PyTorch begins the error of a loader whose worker, or the thread that reads from dead workers, is gone.
_SIGNS_OF_DEATH = ("DataLoader worker (pid", "Pin memory thread exited unexpectedly")


class Batch(TypedDict):
    """Clips of one size."""

    video: Tensor
    """float32 in [-1, 1], shape `(B, C, T, H, W)`."""
    source: list[str]
    """The file of each clip."""
    start: Tensor
    """Position of the first frame of each clip in its file, int64, shape `(B,)`."""


@dataclass(frozen=True)
class BatchPlan:
    """Which items each batch of one process holds.

    The items of a step are numbered through: all those of its first micro-batch, process by process, then those of the
    second. So the clips of a step are the same whatever the number of processes and micro-batches, as long as their
    product with `batch_size` is.
    """

    numbers: range
    """Numbers of the micro-batches, counted from the beginning of the training."""
    batch_size: int
    """Clips in a batch."""
    num_micro_batches: int
    """Batches of this process in a step."""
    rank: int
    """Number of this process."""
    num_ranks: int
    """How many processes there are."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.batch, range(len(self)))

    def step(self, position: int) -> int:
        """Return the step that the batch at a position of the plan belongs to."""
        return self.numbers[position] // self.num_micro_batches

    def batch(self, position: int) -> list[tuple[int, int]]:
        """Return the items `(step, index)` of the batch at a position of the plan."""
        first = (self.numbers[position] * self.num_ranks + self.rank) * self.batch_size
        return [(self.step(position), first + i) for i in range(self.batch_size)]

    def part(self, start: int, stop: int | None = None) -> BatchPlan:
        """Return the batches from one position to another, which is not included; to the end without it."""
        return replace(self, numbers=self.numbers[start:stop])


def clip_loader(
    dataset: ClipDataset,
    *,
    batch_size: int,
    start_step: int,
    num_steps: int,
    num_micro_batches: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
) -> ClipLoader:
    """Return the batches of steps `start_step` to `num_steps` (not included), read by `config.num_workers` processes.

    Args:
        dataset: where clips come from.
        batch_size: clips in a batch of one process.
        start_step: the first step; of a resumed run, the number of steps done.
        num_steps: steps of the whole run.
        num_micro_batches: batches of a step, which follow each other; their gradients are to be accumulated.
        rank: number of this process.
        num_ranks: how many processes train together; each gets its share of every step.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 0 <= start_step <= num_steps:
        remedy = "`start_step` is the number of steps done, `num_steps` that of the whole run."
        raise argument_error("start_step", f"from 0 to `num_steps` ({num_steps})", start_step, remedy)
    for name, value in {"batch_size": batch_size, "num_micro_batches": num_micro_batches}.items():
        if value < 1:
            raise argument_error(name, "at least 1", value, "Use 1 or more.")
    if not 0 <= rank < num_ranks:
        raise argument_error("rank", f"from 0 to below `num_ranks` ({num_ranks})", rank, "Processes count from 0.")
    numbers = range(start_step * num_micro_batches, num_steps * num_micro_batches)
    return ClipLoader(dataset, BatchPlan(numbers, batch_size, num_micro_batches, rank, num_ranks))


class ClipLoader:
    """The batches of a plan, in order. Workers that die are replaced, and reading goes on at the batch that is due.

    Args:
        dataset: where clips come from; its settings say how many workers read them.
        plan: which clips.

    Raises:
        DataError: workers died several times in a row without a batch in between, or the data cannot be used.
    """

    def __init__(self, dataset: ClipDataset, plan: BatchPlan) -> None:
        self.dataset = dataset
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        done = num_deaths = 0
        while done < len(self.plan):
            # After a death the batch that is due is read by itself: if it is what kills, nothing else is lost with it.
            plan = self.plan.part(done, done + 1 if num_deaths else None)
            try:
                for batch in _batches(self.dataset, plan):
                    yield batch
                    done, num_deaths = done + 1, 0
            except RuntimeError as error:
                if not str(error).startswith(_SIGNS_OF_DEATH):
                    raise
                num_deaths += 1
                self._survive(error, done, num_deaths)

    def _survive(self, error: RuntimeError, done: int, num_deaths: int) -> None:
        """Say that workers died, or raise an error if it keeps happening."""
        step = self.plan.step(done)
        if num_deaths < MAX_DEATHS:
            logger.warning("%s while step %d was read; other workers go on there", error, step)
            return
        sources = sorted({self.dataset.source_of(*item) for item in self.plan.batch(done)})
        contract = "read by workers that live on"
        got = f"workers that died {num_deaths} times in a row, when they read step {step}: {error}"
        remedy = f"Use fewer `num_workers` if memory is short; else a decoder crashes, perhaps on {', '.join(sources)}."
        raise argument_error("data", contract, got, remedy, DataError) from error


def _batches(dataset: ClipDataset, plan: BatchPlan) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=plan,
        num_workers=dataset.config.num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_trainer,
        # A loader draws its workers' seeds when it starts; from a generator of its own, so that a resumed run, which
        # starts one more loader, still samples as the uninterrupted run does.
        generator=torch.Generator(),
    )
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    _notice_deaths_in_the_loader_alone()
    # The interpreter would wait for workers that outlive the loop, kept by the traceback of an error or by a variable,
    # and they do not listen to its signal.
    workers = set(multiprocessing.active_children()) - others
    end = partial(_kill, workers)
    atexit.register(end)
    try:
        yield from batches
    except (OSError, EOFError) as error:
        # A worker's connection breaks a little before the worker is seen to be dead.
        if pids := _ended(workers):
            raise RuntimeError(f"{_SIGNS_OF_DEATH[0]} {pids}) exited unexpectedly") from error
        raise
    finally:
        end()
        atexit.unregister(end)


def _ended(workers: Iterable[BaseProcess]) -> str:
    """Return the numbers of the workers that have ended, or do within a second, as text; nothing if none has."""
    by_sentinel = {worker.sentinel: worker.pid for worker in workers}
    ended = wait(by_sentinel, timeout=1) if by_sentinel else []
    return ", ".join(str(by_sentinel[sentinel]) for sentinel in ended if isinstance(sentinel, int))


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
        worker.join()


def _notice_deaths_in_the_loader_alone() -> None:
    """Remove PyTorch's handler of ended child processes, which would raise in the midst of an update.

    Without it a loader notices by itself, when it has waited for a batch for five seconds.
    """
    number = getattr(signal, "SIGCHLD", None)  # not on Windows
    if number is None or threading.current_thread() is not threading.main_thread():
        return
    if getattr(signal.getsignal(number), "__module__", None) == signal_handling.__name__:
        signal.signal(number, signal.SIG_DFL)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Let the training process, which gets the same signal, end the update and write a checkpoint first.

    A worker ends when its loader does, or soon after the training process is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
