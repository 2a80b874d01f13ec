"""Batches are the same after a resume, with more processes, and when a worker dies."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from dataclasses import replace
from itertools import chain
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from telecine.data import Clip, ClipBatchSampler, ClipDataset, ClipLoader, DataError, ReadingStopped, Span, loader
from telecine.settings import Bucket, ClipConfig

CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_reads_the_same_batches(spans: list[Span], num_workers: int) -> None:
    buckets = (Bucket(5, 32, 40), Bucket(3, 48, 32))
    dataset = ClipDataset(spans, replace(CONFIG, num_workers=num_workers, buckets=buckets))
    whole = list(ClipLoader(dataset, ClipBatchSampler(range(6), 2)))
    rest = list(ClipLoader(dataset, ClipBatchSampler(range(3, 6), 2)))
    assert (len(whole), len(rest)) == (6, 3)
    assert {batch["video"].shape for batch in whole} == {(2, 3, 5, 32, 40), (2, 3, 3, 48, 32)}
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a["video"], b["video"])
        assert a["source"] == b["source"]
        assert torch.equal(a["start"], b["start"])


def items(samplers: list[ClipBatchSampler], step: int) -> list[tuple[int, int]]:
    """Return the items of a step of all processes, sorted."""
    return sorted(chain.from_iterable(batch for sampler in samplers for batch in sampler if batch[0][0] == step))


@settings(deadline=None)
@given(
    layout=st.sampled_from([(24, 1, 1), (12, 2, 1), (12, 1, 2), (6, 2, 2), (3, 4, 2), (1, 3, 8), (4, 6, 1)]),
    start=st.integers(0, 5),
)
def test_the_clips_of_a_step_do_not_depend_on_the_number_of_processes(layout: tuple[int, int, int], start: int) -> None:
    size, num_micro_batches, num_ranks = layout
    batches = range(start * num_micro_batches, 7 * num_micro_batches)
    samplers = [ClipBatchSampler(batches, size, num_micro_batches, rank, num_ranks) for rank in range(num_ranks)]
    for step in range(start, 7):
        assert items(samplers, step) == [(step, index) for index in range(24 * step, 24 * step + 24)]
    first = samplers[0]
    assert len(first) == len(list(first)) == (7 - start) * num_micro_batches
    assert list(replace(first, batches=first.batches[1:2])) == list(first)[1:2]


def test_processes_and_micro_batches_split_a_step(spans: list[Span]) -> None:
    config = replace(CONFIG, buckets=(Bucket(5, 32, 40), Bucket(3, 48, 32)))
    dataset = ClipDataset(spans, config, seed=1)
    single = list(ClipLoader(dataset, ClipBatchSampler(range(2, 4), 4)))
    ranks = [list(ClipLoader(dataset, ClipBatchSampler(range(4, 8), 1, 2, rank, num_ranks=2))) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [4, 4]
    for step in range(2):
        parts = [ranks[rank][2 * step + micro]["video"] for micro in range(2) for rank in range(2)]
        assert torch.equal(torch.cat(parts), single[step]["video"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive int"),
        ({"num_micro_batches": 0}, "`num_micro_batches` must be a positive int"),
        ({"rank": 2, "num_ranks": 2}, r"`rank` must be at least 0 and below `num_ranks` \(2\), but got 2"),
        ({"rank": -1}, "`rank` must be at least 0"),
    ],
)
def test_numbers_out_of_range(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipBatchSampler(range(3), **{"batch_size": 1, **changes})


def test_a_finished_run_has_no_batches(spans: list[Span]) -> None:
    batches = ClipLoader(ClipDataset(spans, CONFIG), ClipBatchSampler(range(3, 3), 1))
    assert list(batches) == []


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at workers and signals ten times a second."""
    monkeypatch.setattr(loader, "POLL_SECONDS", 0.1)


@pytest.mark.usefixtures("short_waits")
def test_a_killed_worker_is_replaced(spans: list[Span], caplog: pytest.LogCaptureFixture) -> None:
    dataset = ClipDataset(spans, replace(CONFIG, num_workers=1))
    expected = [dataset[i] for i in range(8)]
    seen = []
    for batch in ClipLoader(dataset, ClipBatchSampler(range(8), 1)):
        seen.append(batch)
        if len(seen) == 3:
            kill_the_worker()
    assert len(seen) == len(expected)
    for batch, clip in zip(seen, expected, strict=True):
        assert torch.equal(batch["video"][0], clip["video"])
    assert caplog.text.count("exited unexpectedly") == 1
    assert "while reading step 3, " in caplog.text


def kill_the_worker() -> None:
    """Kill the only worker, as the system does when memory is short."""
    worker = the_worker()
    worker.kill()
    worker.join(timeout=60)


def the_worker() -> BaseProcess:
    """Return the only worker."""
    gc.collect()  # ends workers of earlier tests
    (worker,) = multiprocessing.active_children()
    return worker


def test_a_broken_connection_to_a_dead_worker_is_a_death(
    spans: list[Span], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed worker closes its connection before the loader notices that it is dead."""
    read = _MultiProcessingDataLoaderIter._try_get_data
    calls = 0

    def break_once(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            kill_the_worker()
            raise ConnectionResetError("reset by peer")
        return read(self, *arguments)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", break_once)
    dataset = ClipDataset(spans, replace(CONFIG, num_workers=1))
    seen = list(ClipLoader(dataset, ClipBatchSampler(range(4), 1)))
    assert [torch.equal(batch["video"][0], dataset[i]["video"]) for i, batch in enumerate(seen)] == [True] * 4
    assert caplog.text.count("exited unexpectedly") == 1


def test_a_dead_pin_memory_thread_is_a_death(
    spans: list[Span], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch pins memory only if there is an accelerator, so its error is raised here."""
    read, calls = _MultiProcessingDataLoaderIter._try_get_data, 0

    def fail_once(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("Pin memory thread exited unexpectedly")
        return read(self, *arguments)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", fail_once)
    dataset = ClipDataset(spans, replace(CONFIG, num_workers=1))
    assert len(list(ClipLoader(dataset, ClipBatchSampler(range(3), 1)))) == 3
    assert caplog.text.count("Pin memory thread exited unexpectedly while reading step 0") == 1


@pytest.mark.usefixtures("short_waits")
def test_a_stopped_worker_is_replaced(spans: list[Span], caplog: pytest.LogCaptureFixture) -> None:
    dataset = ClipDataset(spans, replace(CONFIG, num_workers=1, timeout=1.0))
    seen = []
    for batch in ClipLoader(dataset, ClipBatchSampler(range(8), 1)):
        seen.append(batch)
        if len(seen) == 2:
            time.sleep(0.5)  # the next batches are done, but their memory is still to be handed over
            os.kill(the_worker().pid or 0, signal.SIGSTOP)
    assert [torch.equal(batch["video"][0], dataset[i]["video"]) for i, batch in enumerate(seen)] == [True] * 8
    assert re.search(r"no batch in 1 seconds while reading step \d, \S+\.mp4; restarting the workers", caplog.text)
    assert not multiprocessing.active_children(), "the stopped one is gone"


class Stuck(ClipDataset):
    """Never returns from one item of a batch, like a disk that does not answer."""

    def __getitem__(self, item: Any) -> Clip:
        if item == (1, 3):
            time.sleep(600)
        return super().__getitem__(item)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.slow
def test_the_file_that_does_not_answer_is_named(spans: list[Span]) -> None:
    datasets = (Stuck(spans, replace(CONFIG, num_workers=1, timeout=1.0), seed=seed) for seed in range(10))
    dataset = next(each for each in datasets if each.source_at(1, 2) != each.source_at(1, 3))
    batches = iter(ClipLoader(dataset, ClipBatchSampler(range(3), 2)))
    next(batches)
    with pytest.raises(
        DataError, match=rf"no batch in 1 seconds\. Check {dataset.source_at(1, 3)}: .*`clips\.timeout`"
    ):
        next(batches)


@pytest.mark.usefixtures("short_waits")
def test_waiting_for_a_batch_can_be_stopped(spans: list[Span]) -> None:
    dataset = Stuck(spans, replace(CONFIG, num_workers=1, timeout=60))
    calls = iter([False, False, True])
    batches = iter(ClipLoader(dataset, ClipBatchSampler(range(1, 3), 2), should_stop=lambda: next(calls)))
    with pytest.raises(ReadingStopped):
        next(batches)
    assert not multiprocessing.active_children()


class Failing(ClipDataset):
    """Raises an error for every item."""

    error: type[Exception]

    def __getitem__(self, item: Any) -> Clip:
        raise self.error("a bug")


# A connection to a dying worker raises an `OSError`, of which `FileNotFoundError` is a subclass.
@pytest.mark.parametrize("error", [RuntimeError, FileNotFoundError])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.slow
def test_other_errors_are_raised(spans: list[Span], num_workers: int, error: type[Exception]) -> None:
    dataset = Failing(spans, replace(CONFIG, num_workers=num_workers))
    dataset.error = error
    gc.collect()  # ends workers of earlier tests
    before = set(multiprocessing.active_children())
    with pytest.raises(error, match="a bug") as raised:
        next(iter(ClipLoader(dataset, ClipBatchSampler(range(1), 1))))
    assert raised.tb is not None  # the traceback keeps the loader alive, but not its workers
    assert set(multiprocessing.active_children()) <= before


def test_a_death_does_not_interrupt_the_training_process(spans: list[Span]) -> None:
    dataset = ClipDataset(spans, replace(CONFIG, num_workers=1))
    batches = iter(ClipLoader(dataset, ClipBatchSampler(range(2), 1)))
    next(batches)
    kill_the_worker()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:  # PyTorch's handler would raise an error here
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the loader that did not start
@pytest.mark.parametrize("name", ["telecine workers", "QueueFeederThread"])
def test_no_process_is_left_where_no_thread_starts(
    spans: list[Span], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Workers ignore SIGTERM, so one that is left would let the interpreter wait at its end."""
    before = set(multiprocessing.active_children())
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    dataset = ClipDataset(spans, replace(CONFIG, num_workers=2))
    with pytest.raises(DataError, match=r"The system starts no more threads\. Raise the limit"):
        next(iter(ClipLoader(dataset, ClipBatchSampler(range(2), 2))))
    assert set(multiprocessing.active_children()) == before
