"""A function that is mapped over worker processes: its results, its errors, what it logs, and how the processes end."""

import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing
from functools import partial

import pytest

from telecine.data import DecodeError
from telecine.data.errors import DataError
from telecine.data.worker_process import map_in_processes

logger = logging.getLogger("telecine.data.test")


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def pid_and_bytes(parent, number):
    """Return the process that is called, and more bytes than a pipe holds. It logs the number."""
    assert os.getpid() != parent
    logger.warning("number %s", number)
    return os.getpid(), bytes([number]) * 10**6


def test_results_are_in_order_and_what_processes_log_is_logged_here(caplog):
    call = partial(pid_and_bytes, os.getpid())
    results = list(map_in_processes(call, range(9), 3, "calling"))
    assert [content[0] for _, content in results] == list(range(9))
    assert len({pid for pid, _ in results}) == 3
    assert sorted(caplog.messages) == [f"number {number}" for number in range(9)]


def log_with_the_levels_of_a_new_process(number):
    logger.setLevel(logging.NOTSET)
    logger.warning("number %s", number)


def test_levels_are_those_of_this_process(caplog):
    logger.setLevel(logging.ERROR)
    try:
        list(map_in_processes(log_with_the_levels_of_a_new_process, range(2), 2, "calling"))
    finally:
        logger.setLevel(logging.NOTSET)
    assert caplog.messages == []


def test_one_process_is_this_one():
    assert (
        list(map_in_processes(lambda _: os.getpid(), range(2), 1, "calling")) == [os.getpid()] * 2
    )
    assert list(map_in_processes(lambda _: os.getpid(), [], 1, "calling")) == []


def test_the_garbage_collector_leaves_the_objects_of_this_process_shared():
    (num_objects,) = map_in_processes(lambda _: gc.get_freeze_count(), range(1), 2, "calling")
    assert num_objects > 10_000


@pytest.mark.parametrize("error", [DecodeError("a.mp4: damaged"), OSError(5, "Input/output error")])
def test_an_error_has_its_type_and_its_text(error):
    def fail(number):
        if number == 3:
            raise error
        return number

    with pytest.raises(type(error)) as raised:
        list(map_in_processes(fail, range(9), 2, "calling"))
    assert str(raised.value) == str(error)


def test_another_error_is_printed_and_ends_its_process(capfd):
    def fail(_):
        raise EOFError("no more bytes")

    with pytest.raises(DataError, match="has ended with exit code 1"):
        list(map_in_processes(fail, range(2), 2, "calling"))
    assert "EOFError: no more bytes" in capfd.readouterr().err


def test_a_process_that_is_killed_while_it_sends_a_result():
    class KillSender(logging.Handler):
        def emit(self, record):
            time.sleep(0.1)  # until the pipe is full
            os.kill(int(record.getMessage()), signal.SIGKILL)

    def log_and_return(number):
        if number == 0:
            logger.warning("%s", os.getpid())
        return bytes(10**7)

    handler = KillSender()
    logger.addHandler(handler)
    try:
        with pytest.raises(DataError, match=r"has ended with exit code -9\. If it was killed"):
            list(map_in_processes(log_and_return, range(2), 2, "calling"))
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def interrupts():
    """Ctrl-C raises a `KeyboardInterrupt`: a shell lets programs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_ends_processes_at_once():
    def interrupt():
        """Wait for both processes: Python ignores what interrupts a fork."""
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    begin = time.monotonic()
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(map_in_processes(time.sleep, [60] * 4, 2, "calling"))
    assert time.monotonic() - begin < 30


def test_processes_end_with_the_generator():
    with closing(map_in_processes(time.sleep, [0, 60, 60], 2, "calling")) as results:
        next(results)
    assert len(multiprocessing.active_children()) == 0
