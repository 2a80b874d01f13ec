import os
import pty
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from telecine.base.checks import Interrupted
from telecine.data.worker_process import STOP_SIGNALS
from telecine.training import interrupt
from telecine.training.interrupt import stop_on_signal


@pytest.fixture
def raising_handlers():
    """Make every signal raise: whoever starts the tests in the background makes Python ignore some."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("raising_handlers")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_sets_the_request_and_a_second_acts_as_before(number, capfd, monkeypatch):
    monkeypatch.setattr(interrupt, "REPETITION_SECONDS", 0.0)
    before = signal.getsignal(number)
    other = next(candidate for candidate in STOP_SIGNALS if candidate != number)
    with stop_on_signal() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), number)
        assert stop.is_set
        assert "again to stop now" in capfd.readouterr().err
        os.kill(os.getpid(), other)
        assert stop.is_set, (
            "one of another kind, as schedulers send them one after the other, does not"
        )
        assert not capfd.readouterr().err, "and is not acknowledged again"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("raising_handlers")
@pytest.mark.parametrize("number", [n for n in STOP_SIGNALS if n != signal.SIGINT])
def test_a_signal_that_a_scheduler_and_torchrun_both_send_is_one_request(number):
    with stop_on_signal() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.is_set


@pytest.mark.usefixtures("raising_handlers")
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_of_several_processes_only_living_ones_can_save(num_ranks, capfd, monkeypatch):
    """A launcher sends the signal if one of them has died, too."""
    monkeypatch.setattr(interrupt, "num_ranks", lambda: num_ranks)
    with stop_on_signal():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ("and saving if all processes still run" in capfd.readouterr().err) == (num_ranks > 1)


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_set
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


@pytest.mark.usefixtures("raising_handlers")
def test_a_second_ctrl_c_interrupts():
    with stop_on_signal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def closed_terminal():
    """Make standard output and standard error those of a terminal that was closed."""
    saved = [os.dup(output) for output in (1, 2)]
    master, terminal = pty.openpty()
    for output in (1, 2):
        os.dup2(terminal, output)
    os.close(terminal)
    os.close(master)
    try:
        yield
    finally:
        for output, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, output)
            os.close(descriptor)


@pytest.mark.usefixtures("raising_handlers")
def test_a_closed_terminal_does_not_keep_the_run_from_saving():
    with closed_terminal(), stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.is_set
        os.write(1, b"progress")
        os.write(2, b"a warning")


@pytest.mark.usefixtures("raising_handlers")
def test_output_in_a_file_is_kept_when_the_terminal_is_closed(tmp_path):
    with (tmp_path / "log").open("w") as log, closed_terminal(), stop_on_signal():
        os.dup2(log.fileno(), 1)
        os.kill(os.getpid(), signal.SIGHUP)
        os.write(1, b"saved")
    assert (tmp_path / "log").read_text() == "saved"


def test_other_threads_leave_signals_to_the_main_thread():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def enter():
        with stop_on_signal() as stop:
            return stop.is_set, {number: signal.getsignal(number) for number in STOP_SIGNALS}

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(enter).result() == (False, before)


@pytest.mark.usefixtures("raising_handlers")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_before_there_is_anything_to_save_raises_at_once(number):
    before = signal.getsignal(number)
    with (
        pytest.raises(Interrupted, match="stopped before the first update"),
        stop_on_signal(at_once=Interrupted(None)),
    ):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
