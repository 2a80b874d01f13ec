"""Batches of clips, read by worker processes. A worker that dies is replaced."""

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
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from telecine.checks import argument_error, check_count
from telecine.data.clip import Clip
from telecine.data.dataset import ClipDataset
from telecine.data.source import DataError

logger = logging.getLogger(__name__)

# If workers die this often in a row, without a batch in between, the data itself is taken to be the cause.
MAX_DEATHS = 3
# What ends a run with a checkpoint: Ctrl-C, a scheduler's end, a closed terminal, Slurm's `--signal=USR1`. Windows has
# the first two only.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
# Beginnings of PyTorch's errors when a worker, or the thread that pins memory, has died.
_DEATH_MESSAGES = ("DataLoader worker (pid", "Pin memory thread exited unexpectedly")


class Batch(TypedDict):
    """Clips of one size."""

    video: Tensor
    """float32 in [-1, 1], shape `(B, C, T, H, W)`."""
    source: list[str]
    """The file of each clip."""
    start: Tensor
    """Index of the first frame of each clip in its file, int64, shape `(B,)`."""


@dataclass(frozen=True)
class ClipBatchSampler:
    """The items of each batch of one process.

    The items of a step are numbered across processes and micro-batches: first those of the first micro-batch of each
    process, then those of the second, and so on. A step therefore has the same clips with any number of processes and
    micro-batches, if the product of both with `batch_size` is the same.
    """

    batches: range
    """Numbers of the micro-batches, counted from the start of training."""
    batch_size: int
    """Clips per batch."""
    num_micro_batches: int
    """Batches per step of this process."""
    rank: int
    """Rank of this process."""
    num_ranks: int
    """Number of processes."""

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.items, range(len(self)))

    def step(self, position: int) -> int:
        """Return the step of the batch at a position of this sampler."""
        return self.batches[position] // self.num_micro_batches

    def items(self, position: int) -> list[tuple[int, int]]:
        """Return the items `(step, index)` of the batch at a position of this sampler."""
        first = (self.batches[position] * self.num_ranks + self.rank) * self.batch_size
        return [(self.step(position), first + i) for i in range(self.batch_size)]

    def subset(self, start: int, stop: int | None = None) -> ClipBatchSampler:
        """Return the sampler of the batches from position `start` to `stop`, exclusive, or to the end."""
        return replace(self, batches=self.batches[start:stop])


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
    """Return a loader of the batches of steps `start_step` to `num_steps`, exclusive.

    Args:
        dataset: The clips. Its `config.num_workers` is the number of worker processes.
        batch_size: Clips per batch of one process.
        start_step: The first step. When resuming, the number of completed steps.
        num_steps: Number of steps of the whole run.
        num_micro_batches: Consecutive batches per step, for gradient accumulation.
        rank: Rank of this process.
        num_ranks: Number of processes that train together. Each reads its part of every step.

    Raises:
        ValueError: a number is out of range.
    """
    if not 0 <= start_step <= num_steps:
        remedy = "`start_step` is the number of completed steps, `num_steps` that of the whole run."
        raise argument_error("start_step", f"from 0 to `num_steps` ({num_steps})", start_step, remedy)
    check_count("batch_size", batch_size)
    check_count("num_micro_batches", num_micro_batches)
    if not 0 <= rank < num_ranks:
        raise argument_error("rank", f"at least 0 and below `num_ranks` ({num_ranks})", rank, "Ranks start at 0.")
    batches = range(start_step * num_micro_batches, num_steps * num_micro_batches)
    return ClipLoader(dataset, ClipBatchSampler(batches, batch_size, num_micro_batches, rank, num_ranks))


class ClipLoader:
    """The batches of a sampler, in order. Workers that die are replaced, and reading resumes at the next batch.

    Args:
        dataset: The clips. Its `config.num_workers` is the number of worker processes.
        sampler: The items of each batch.

    Raises:
        DataError: workers died several times in a row without a batch in between, or the data cannot be used.
    """

    def __init__(self, dataset: ClipDataset, sampler: ClipBatchSampler) -> None:
        self.dataset = dataset
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        num_done = num_deaths = 0
        while num_done < len(self.sampler):
            # After a death, read the next batch alone: if it kills its worker again, no other batch is lost.
            sampler = self.sampler.subset(num_done, num_done + 1 if num_deaths else None)
            try:
                for batch in _read_batches(self.dataset, sampler):
                    yield batch
                    num_done, num_deaths = num_done + 1, 0
            except RuntimeError as error:
                if not str(error).startswith(_DEATH_MESSAGES):
                    raise
                num_deaths += 1
                self._report_death(error, num_done, num_deaths)

    def _report_death(self, error: RuntimeError, position: int, num_deaths: int) -> None:
        """Log that a worker died, or raise an error if it happened too often in a row."""
        step = self.sampler.step(position)
        if num_deaths < MAX_DEATHS:
            logger.warning("%s while reading step %d; restarting the workers", error, step)
            return
        files = ", ".join(sorted({self.dataset.source_at(*item) for item in self.sampler.items(position)}))
        contract = "readable without crashing the worker processes"
        got = f"workers that died {num_deaths} times in a row while reading step {step}: {error}"
        remedy = f"Use fewer `num_workers` if memory is short. Otherwise the decoder may crash; check {files}."
        raise argument_error("data", contract, got, remedy, DataError) from error


def _read_batches(dataset: ClipDataset, sampler: ClipBatchSampler) -> Iterator[Batch]:
    loader: DataLoader[Clip] = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=dataset.config.num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_stop_signals,
        # A loader draws the seeds of its workers when it starts. With its own generator it leaves the global one
        # unchanged, so a resumed run, which starts one more loader, draws the same numbers as an uninterrupted run.
        generator=torch.Generator(),
    )
    other_processes = set(multiprocessing.active_children())
    batches = iter(loader)
    _remove_sigchld_handler()
    # If an error's traceback or a variable keeps the loader alive, the interpreter waits at exit for its workers, which
    # ignore SIGTERM. Kill them.
    workers = set(multiprocessing.active_children()) - other_processes
    kill_workers = partial(_kill, workers)
    atexit.register(kill_workers)
    try:
        yield from batches
    except (OSError, EOFError) as error:
        # The connection to a dying worker breaks shortly before PyTorch notices its death.
        if pids := _dead_pids(workers):
            raise RuntimeError(f"{_DEATH_MESSAGES[0]} {pids}) exited unexpectedly") from error
        raise
    finally:
        kill_workers()
        atexit.unregister(kill_workers)


def _dead_pids(workers: Iterable[BaseProcess]) -> str:
    """Return the comma-separated process ids of the workers that are dead, or die within a second."""
    pids = {worker.sentinel: worker.pid for worker in workers}
    ended = wait(pids, timeout=1) if pids else []
    return ", ".join(str(pids[sentinel]) for sentinel in ended if isinstance(sentinel, int))


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
        worker.join()


def _remove_sigchld_handler() -> None:
    """Remove PyTorch's handler of dead child processes, which raises an error in the middle of an update.

    Without it, the loader notices a dead worker after it has waited for a batch for five seconds.
    """
    number = getattr(signal, "SIGCHLD", None)  # does not exist on Windows
    if number is None or threading.current_thread() is not threading.main_thread():
        return
    if getattr(signal.getsignal(number), "__module__", None) == signal_handling.__name__:
        signal.signal(number, signal.SIG_DFL)


def _ignore_stop_signals(worker: int) -> None:
    """Ignore `STOP_SIGNALS` in a worker, so that the training process can finish its step and save a checkpoint.

    The training process gets the same signals. A worker exits with its loader, or soon after the training process.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
