"""Batches are the same after a resume, with more processes, and when a worker dies."""

import gc
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from telecine.data import (
    ClipBatchSampler,
    ClipDataset,
    ClipLoader,
    DataError,
    ReadingStopped,
    index_video,
    loader,
    whole_video,
)
from telecine.settings import Bucket, ClipConfig

from .videos import damage, moving_frames, write_video

CONFIG = ClipConfig(num_frames=5, height=32, width=40, num_workers=0)
ONE_WORKER = replace(CONFIG, num_workers=1)
# For workers that are stopped; those that replace them may start slowly on a busy machine.
SHORT_TIMEOUT = replace(ONE_WORKER, timeout=2.0)
TWO_SIZES = replace(CONFIG, buckets=(Bucket(5, 32, 40), Bucket(3, 48, 32)))


def read(dataset, batches, *split, **options):
    return list(ClipLoader(dataset, ClipBatchSampler(batches, *split), **options))


def assert_clips(batches, dataset):
    """Assert that batches have the first clips of a dataset, one each."""
    assert batches
    for index, batch in enumerate(batches):
        assert torch.equal(batch["video"][0], dataset[index]["video"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_reads_the_same_batches(spans, num_workers):
    dataset = ClipDataset(spans, replace(TWO_SIZES, num_workers=num_workers))
    whole = read(dataset, range(6), 2)
    rest = read(dataset, range(3, 6), 2)
    assert (len(whole), len(rest)) == (6, 3)
    assert read(dataset, range(3, 3), 2) == []
    assert {batch["video"].shape for batch in whole} == {(2, 3, 5, 32, 40), (2, 3, 3, 48, 32)}
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a["video"], b["video"])
        assert a["source"] == b["source"]
        assert torch.equal(a["start"], b["start"])


@settings(deadline=None)
@given(
    layout=st.sampled_from(
        [(24, 1, 1), (12, 2, 1), (12, 1, 2), (6, 2, 2), (3, 4, 2), (1, 3, 8), (4, 6, 1)]
    ),
    start=st.integers(0, 5),
)
def test_the_clips_of_a_step_do_not_depend_on_the_number_of_processes(layout, start):
    size, num_micro_batches, num_ranks = layout
    batches = range(start * num_micro_batches, 7 * num_micro_batches)
    samplers = [
        ClipBatchSampler(batches, size, num_micro_batches, rank, num_ranks)
        for rank in range(num_ranks)
    ]
    items = [item for sampler in samplers for batch in sampler for item in batch]
    assert sorted(items) == [
        (step, index) for step in range(start, 7) for index in range(24 * step, 24 * step + 24)
    ]
    first = samplers[0]
    assert len(first) == len(list(first)) == (7 - start) * num_micro_batches
    assert list(replace(first, batches=first.batches[1:2])) == list(first)[1:2]


def test_processes_and_micro_batches_split_a_step(spans):
    dataset = ClipDataset(spans, TWO_SIZES, seed=1)
    single = read(dataset, range(2, 4), 4)
    ranks = [read(dataset, range(4, 8), 1, 2, rank, 2) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [4, 4]
    for step in range(2):
        parts = [ranks[rank][2 * step + micro]["video"] for micro in range(2) for rank in range(2)]
        assert torch.equal(torch.cat(parts), single[step]["video"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive int"),
        ({"num_micro_batches": 0}, "`num_micro_batches` must be a positive int"),
        (
            {"rank": 2, "num_ranks": 2},
            r"`rank` must be at least 0 and below `num_ranks` \(2\), but got 2",
        ),
        ({"rank": -1}, "`rank` must be at least 0"),
    ],
)
def test_numbers_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        ClipBatchSampler(range(3), **{"batch_size": 1, **changes})


@pytest.fixture
def short_waits(monkeypatch):
    """Look at workers and signals ten times a second."""
    monkeypatch.setattr(loader, "POLL_SECONDS", 0.1)


def the_worker():
    """Return the only worker."""
    gc.collect()  # ends workers of earlier tests
    (worker,) = multiprocessing.active_children()
    return worker


def kill_the_worker():
    """Kill the only worker, as the system does when memory is short."""
    worker = the_worker()
    worker.kill()
    worker.join(timeout=60)


def stop_the_worker():
    time.sleep(0.5)  # the next batches are done, but their memory is still to be handed over
    os.kill(the_worker().pid, signal.SIGSTOP)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            kill_the_worker,
            r"exited unexpectedly.* while reading step \d, \S+\.mp4; restarting the workers",
        ),
        (
            stop_the_worker,
            r"no batch in 2 seconds while reading step \d, \S+\.mp4; restarting the workers",
        ),
    ],
)
def test_a_killed_or_stopped_worker_is_replaced(spans, caplog, harm, message):
    dataset = ClipDataset(spans, SHORT_TIMEOUT)
    batches = []
    for batch in ClipLoader(dataset, ClipBatchSampler(range(8), 1)):
        batches.append(batch)
        if len(batches) == 3:
            dataset.config = ONE_WORKER
            harm()
    assert len(batches) == 8
    assert_clips(batches, dataset)
    assert len(re.findall(message, caplog.text)) == 1
    assert not multiprocessing.active_children()


def test_a_damaged_file_is_logged_by_one_of_several_workers(tmp_path):
    path = write_video(tmp_path / "damaged.mp4", moving_frames(60), "libx264", g="10")
    span = whole_video(index_video(damage(path, 0.45, 0.6)))
    dataset = ClipDataset([span], replace(ONE_WORKER, num_frames=2))
    handler = logging.FileHandler(tmp_path / "log.txt")
    package_logger = logging.getLogger("telecine")
    package_logger.addHandler(handler)
    try:
        for _ in range(2):  # a worker each
            read(dataset, range(8), 1)
    finally:
        package_logger.removeHandler(handler)
        handler.close()
    assert (tmp_path / "log.txt").read_text().count("replacing clips") == 1


def broken_connection():
    """A killed worker closes its connection before the loader notices that it is dead."""
    kill_the_worker()
    return ConnectionResetError("reset by peer")


def dead_thread():
    """PyTorch pins memory only if there is an accelerator."""
    return RuntimeError("Pin memory thread exited unexpectedly")


@pytest.mark.parametrize("harm", [broken_connection, dead_thread])
def test_errors_of_pytorch_when_a_worker_or_a_thread_dies(spans, caplog, monkeypatch, harm):
    get = _MultiProcessingDataLoaderIter._try_get_data
    harms = [None, harm]

    def get_or_fail(self, *arguments):
        next_harm = harms.pop(0) if harms else None
        if next_harm is not None:
            raise next_harm()
        return get(self, *arguments)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", get_or_fail)
    dataset = ClipDataset(spans, ONE_WORKER)
    batches = read(dataset, range(4), 1)
    assert len(batches) == 4
    assert_clips(batches, dataset)
    assert caplog.text.count("exited unexpectedly while reading step") == 1


class Stuck(ClipDataset):
    """Never returns from one item of a batch, like a disk that does not answer."""

    def __getitem__(self, item):
        if item == (1, 3):
            time.sleep(600)
        return super().__getitem__(item)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.slow
def test_the_file_that_does_not_answer_is_named(spans):
    datasets = [Stuck(spans, replace(ONE_WORKER, timeout=1.0), seed=seed) for seed in range(10)]
    dataset = next(
        dataset for dataset in datasets if dataset.source_at(1, 2) != dataset.source_at(1, 3)
    )
    batches = iter(ClipLoader(dataset, ClipBatchSampler(range(3), 2)))
    next(batches)
    message = rf"no batch in 1 seconds\. Check {dataset.source_at(1, 3)}: .*`clips\.timeout`"
    with pytest.raises(DataError, match=message):
        next(batches)


@pytest.mark.usefixtures("short_waits")
def test_a_loader_whose_workers_failed_is_gone_before_others_start(spans):
    """Else each new worker has a copy of it, whose end prints "can only test a child process" there."""
    gc.collect()
    gc.disable()
    try:
        dataset = ClipDataset(spans, SHORT_TIMEOUT)
        batches = iter(ClipLoader(dataset, ClipBatchSampler(range(3), 1)))
        next(batches)
        dataset.config = ONE_WORKER
        stop_the_worker()
        next(batches)
        objects = gc.get_objects()
        loaders = [one for one in objects if isinstance(one, _MultiProcessingDataLoaderIter)]
        assert len(loaders) == 1
        assert len(list(batches)) == 1
    finally:
        gc.enable()


@pytest.mark.usefixtures("short_waits")
def test_waiting_for_a_batch_can_be_stopped(spans):
    answers = iter([False, False, True])
    with pytest.raises(ReadingStopped):
        read(
            Stuck(spans, replace(ONE_WORKER, timeout=60)),
            range(1, 3),
            2,
            should_stop=lambda: next(answers),
        )
    assert not multiprocessing.active_children()


class Failing(ClipDataset):
    """Raises an error for every item."""

    error = None

    def __getitem__(self, item):
        raise self.error("a bug")


# A connection to a dying worker raises an `OSError`, of which `FileNotFoundError` is a subclass.
@pytest.mark.parametrize("error", [RuntimeError, FileNotFoundError])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.slow
def test_other_errors_are_raised(spans, num_workers, error):
    dataset = Failing(spans, replace(CONFIG, num_workers=num_workers))
    dataset.error = error
    gc.collect()  # ends workers of earlier tests
    before = set(multiprocessing.active_children())
    with pytest.raises(error, match="a bug") as raised:
        read(dataset, range(1), 1)
    assert raised.tb is not None  # the traceback keeps the loader alive, but not its workers
    assert set(multiprocessing.active_children()) <= before


def test_a_death_does_not_interrupt_the_training_process(spans):
    batches = iter(ClipLoader(ClipDataset(spans, ONE_WORKER), ClipBatchSampler(range(2), 1)))
    next(batches)
    kill_the_worker()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:  # PyTorch's handler would raise an error here
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of the loader that did not start
@pytest.mark.parametrize("name", ["telecine workers", "QueueFeederThread"])
def test_no_process_is_left_where_no_thread_starts(spans, monkeypatch, name):
    """Workers ignore SIGTERM, so one that is left would let the interpreter wait at its end."""
    before = set(multiprocessing.active_children())
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(
        DataError, match=r"The system starts no more threads or processes\. Raise the limit"
    ):
        read(ClipDataset(spans, replace(CONFIG, num_workers=2)), range(2), 2)
    assert set(multiprocessing.active_children()) == before
