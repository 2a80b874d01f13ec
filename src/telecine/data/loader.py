"""Batches of clips from worker processes. Workers that die or do not answer are replaced.

PyTorch's loader and the thread of `_Workers` look once a second while the training process waits for a batch:

| what happens | who detects it |
|---|---|
| a worker dies, or the thread that pins memory | PyTorch's loader, in `next`: a `RuntimeError` with a known beginning |
| a connection breaks because a worker dies | `next`, before PyTorch's loader does: an `OSError`, and `_dead_pids` |
| no batch in `clips.timeout` seconds | the thread: it kills the workers, and `next` raises one of the errors above |
| a signal asks the run to stop | the thread, likewise |
| PyTorch's loader waits without a limit for a worker that is stopped | the thread, likewise |
| the training process dies | the system kills the workers, see `worker_process.py` |
"""

import atexit
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Literal, Protocol, TypeAlias, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from telecine.base.checks import argument_error, check_count
from telecine.data.clip import Clip
from telecine.data.dataset import Item
from telecine.data.errors import DataError, thread_errors
from telecine.data.source import Span
from telecine.data.span_table import SpanTable
from telecine.data.worker_process import initialise_worker, kill_workers
from telecine.settings import MAX_FAILURES, ClipConfig

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between two looks, while waiting for a batch, at the workers and at signals
# Beginnings of PyTorch's errors when a worker, or the thread that pins memory, has died, and when a wait is over.
_WORKER_DEATH = "DataLoader worker (pid"
_PIN_MEMORY_DEATH = "Pin memory thread exited unexpectedly"
_TIME_OUT = "DataLoader timed out after"

_Stop: TypeAlias = Callable[[], bool]  # whether to stop waiting


class ReadingStopped(Exception):  # noqa: N818 - not an error: it was asked for
    """Waiting for a batch was stopped by `should_stop`."""


class _WorkerError(RuntimeError):
    """Workers have died, or have not sent a batch in time."""


class _ClipBatch(TypedDict):
    video: Tensor  # float32 in [-1, 1], shape `(B, C, T, H, W)`
    source: list[str]  # the file of each clip
    start: Tensor  # index of the first frame of each clip in its file, int64, shape `(B,)`
    fps: Tensor  # of each clip, float64, shape `(B,)`


class TrainingClips(Protocol):
    """Clips by item `(step, index)`, each a function of the item alone: those of files, or of a map-style data set."""

    @property
    def config(self) -> ClipConfig:
        """The length and size of clips, and how they are read."""

    @property
    def seed(self) -> int:
        """What determines the order of clips."""

    @property
    def spans(self) -> Sequence[Span] | SpanTable:
        """The parts of files that clips are drawn from; empty for a map-style data set."""

    def __getitem__(self, item: int | Item, /) -> Clip:
        """Return the clip of an item. A number is the item of that step and that index: sizes of clips, and images,
        alternate as in training."""

    def names_of(self, items: Sequence[Item]) -> list[str]:
        """Return the names of items of one step. Clips of one name are equal."""

    def source_at(self, step: int, index: int) -> str:
        """Return where the clip of an item is from, for errors."""


@dataclass(frozen=True)
class ClipBatchSampler:
    """The items of each batch of one process.

    The items of a step are numbered across processes and micro-batches: first those of the first micro-batch of each
    process, then those of the second, and so on. A step has the same clips for any split of its size.

    Raises:
        ValueError: a number is out of range.
    """

    batches: Sequence[int]  # numbers of the micro-batches, counted from the start of training
    batch_size: int  # clips per batch
    num_micro_batches: int = 1
    """Consecutive batches per step of this process, for gradient accumulation."""
    rank: int = 0
    num_ranks: int = 1  # number of processes that train together; each reads its part of every step

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_count("num_micro_batches", self.num_micro_batches)
        if not 0 <= self.rank < self.num_ranks:
            contract = f"at least 0 and below `num_ranks` ({self.num_ranks})"
            raise argument_error("rank", contract, self.rank, "Ranks start at 0.")

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Item]]:
        for position in range(len(self)):
            yield self.items(position)

    def step(self, position: int) -> int:
        """Return the step of the batch at a position of this sampler."""
        return self.batches[position] // self.num_micro_batches

    def items(self, position: int) -> list[Item]:
        """Return the items of the batch at a position of this sampler."""
        step = self.step(position)
        first = (self.batches[position] * self.num_ranks + self.rank) * self.batch_size
        return [(step, index) for index in range(first, first + self.batch_size)]


class ClipLoader:
    """The batches of a sampler, in order. Workers that die or do not answer are replaced, and read the same clips.

    Args:
        dataset: Its `config` has the number of worker processes and the time limit for a batch.
        sampler: The items of each batch.
        should_stop: Asked once a second while waiting for a batch.

    Raises:
        DataError: workers failed several times without a batch in between, or the data cannot be used.
        ReadingStopped: `should_stop` returned true.
    """

    def __init__(
        self,
        dataset: TrainingClips,
        sampler: ClipBatchSampler,
        should_stop: _Stop = lambda: False,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.should_stop = should_stop

    def __iter__(self) -> Iterator[_ClipBatch]:
        num_done = 0
        num_failures = 0  # since the last batch
        while num_done < len(self.sampler):
            batches = self.sampler.batches[num_done:]
            if num_failures > 0:
                batches = batches[:1]  # alone, so that a failure loses no other batch
            sampler = replace(self.sampler, batches=batches)
            requests = _RecordedRequests(self.dataset)
            try:
                for batch in _read_batches(requests, sampler, self.should_stop):
                    yield batch
                    num_done += 1
                    num_failures = 0
            except _WorkerError as error:
                num_failures += 1
                self._report_failure(error, num_done, num_failures, requests)

    def _report_failure(
        self, error: _WorkerError, position: int, num_failures: int, requests: "_RecordedRequests"
    ) -> None:
        """Log that workers failed; after too many failures in a row, raise a `DataError`."""
        step = self.sampler.step(position)
        unfinished = requests.unfinished(self.sampler.items(position))
        files = ", ".join(sorted({self.dataset.source_at(*item) for item in unfinished}))
        if num_failures < MAX_FAILURES:
            # Its text alone: a record that is kept must not keep the traceback, see `_Workers`.
            message = "%s while reading step %d, %s; restarting the workers"
            logger.warning(message, str(error), step, files)
            return
        got = (
            f"workers that failed {num_failures} times in a row while reading step {step}: {error}"
        )
        remedy = f"Check {files}: the decoder may crash, or the disk not answer. Use fewer `clips.num_workers` if "
        remedy += "memory is short, a larger `clips.timeout` if the disk is slow."
        raise argument_error(
            "data", "readable by the worker processes", got, remedy, DataError
        ) from error


class _RecordedRequests(Dataset[Clip]):
    """A dataset that records in shared memory the last item that each worker was asked for."""

    def __init__(self, dataset: TrainingClips) -> None:
        self.dataset = dataset
        self._last_items = torch.full((dataset.config.num_workers, 2), -1).share_memory_()

    def __getitem__(self, item: Item) -> Clip:
        worker = get_worker_info()
        if worker is not None:
            self._last_items[worker.id] = torch.tensor(item)
        return self.dataset[item]

    def unfinished(self, items: list[Item]) -> list[Item]:
        """Return the items of a batch that workers read now; all items if no worker has begun."""
        last_items = self._last_items.tolist()
        being_read = [item for item in items if list(item) in last_items]
        return being_read or items


def _read_batches(
    requests: _RecordedRequests, sampler: ClipBatchSampler, should_stop: _Stop
) -> Iterator[_ClipBatch]:
    workers = _Workers(requests, sampler, should_stop)
    try:
        for _ in range(len(sampler)):
            yield workers.next_batch()
    finally:
        workers.close()


class _Workers:
    """The worker processes of a loader of PyTorch, and a thread that watches them while a batch is awaited.

    The thread kills the workers if no batch comes in time, or if waiting should stop, and keeps the reason: PyTorch
    waits without a limit for a worker that is stopped before it has handed over the memory of a batch.

    Args:
        requests: What the workers read.
        sampler: The items of each batch.
        should_stop: Asked at each poll.
    """

    def __init__(
        self, requests: _RecordedRequests, sampler: ClipBatchSampler, should_stop: _Stop
    ) -> None:
        config = requests.dataset.config
        self._timeout = config.timeout
        self._poll_seconds = min(POLL_SECONDS, config.timeout)
        self._should_stop = should_stop
        # Why the thread has killed the workers. The error is made where it is raised: one that is kept would keep its
        # traceback, and with it PyTorch's loader, of which workers that start later would have a copy.
        self._kill_reason: Literal["stop", "late"] | None = None
        self._lock = threading.Lock()
        self._is_waiting = False
        self._num_polls = 0  # of the present wait
        self._is_closed = threading.Event()
        loader: DataLoader[Clip] = DataLoader(
            requests,
            batch_sampler=sampler,
            num_workers=config.num_workers,
            timeout=self._poll_seconds if config.num_workers > 0 else 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(initialise_worker, os.getpid()),
            # A loader draws the seeds of its workers when it starts. With its own generator it leaves the global one
            # unchanged, so a resumed run, which starts one more loader, draws the same numbers as an uninterrupted run.
            generator=torch.Generator(),
        )
        other_processes = set(multiprocessing.active_children())
        try:
            with thread_errors():
                self._batches = iter(loader)
                _remove_sigchld_handler()
                self._processes = set(multiprocessing.active_children()) - other_processes
                if self._processes:
                    threading.Thread(
                        target=self._watch, name="telecine workers", daemon=True
                    ).start()
        except BaseException:
            kill_workers(set(multiprocessing.active_children()) - other_processes)
            raise
        # The interpreter waits at exit for workers of a loader that is still alive, and they ignore SIGTERM.
        atexit.register(self.close)

    def next_batch(self) -> _ClipBatch:
        """Return the next batch.

        Raises:
            _WorkerError: A worker died, or no batch came in time.
            ReadingStopped: Waiting should stop.
        """
        with self._lock:
            self._is_waiting = True
            self._num_polls = 0
        try:
            while self._kill_reason is None:
                batch = self._poll()
                if batch is not None:
                    return batch
        finally:
            with self._lock:
                self._is_waiting = False
        if self._kill_reason == "stop":
            raise ReadingStopped
        raise _WorkerError(f"no batch in {self._timeout:g} seconds")

    def _poll(self) -> _ClipBatch | None:
        """Return the next batch; None if the loader can be asked again, or if the thread killed the workers."""
        try:
            return next(self._batches)
        except RuntimeError as error:
            message = str(error)
            if message.startswith(_TIME_OUT):
                return None
            if not message.startswith((_WORKER_DEATH, _PIN_MEMORY_DEATH)):
                raise
            if self._kill_reason is not None:
                return None
            raise _WorkerError(message) from error
        except (OSError, EOFError) as error:
            if self._kill_reason is not None:
                return None
            # The connection to a dying worker breaks shortly before PyTorch notices its death.
            pids = _dead_pids(self._processes)
            if not pids:
                raise
            raise _WorkerError(f"{_WORKER_DEATH} {pids}) exited unexpectedly") from error

    def _watch(self) -> None:
        while self._kill_reason is None and not self._is_closed.wait(self._poll_seconds):
            with self._lock:
                if not self._is_waiting:
                    continue
                # Polls are counted, not seconds: this process may have been stopped.
                seconds = self._num_polls * self._poll_seconds
                self._num_polls += 1
            if self._should_stop():
                self._kill_reason = "stop"
            elif seconds >= self._timeout:
                self._kill_reason = "late"
        if self._kill_reason is not None:
            for process in self._processes:
                process.kill()

    def close(self) -> None:
        """End the thread and the workers."""
        self._is_closed.set()
        kill_workers(self._processes)
        atexit.unregister(self.close)


def _dead_pids(workers: Iterable[BaseProcess]) -> str:
    """Return the process ids of workers that have ended, or end within a second."""
    pids = {worker.sentinel: worker.pid for worker in workers}
    if not pids:
        return ""
    ended = wait(pids, timeout=1)
    return ", ".join(str(pids[sentinel]) for sentinel in ended if isinstance(sentinel, int))


def _remove_sigchld_handler() -> None:
    """Remove PyTorch's handler of dead children, which raises during an update. A wait finds them in five seconds."""
    number = getattr(signal, "SIGCHLD", None)  # does not exist on Windows
    if number is None or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(number)
    if getattr(handler, "__module__", None) == signal_handling.__name__:
        signal.signal(number, signal.SIG_DFL)
