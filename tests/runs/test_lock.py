"""One process at a time trains in a folder."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import psutil
import pytest

from telecine.runs.lock import LOCK_FILE, OWNER_FILE, RunLock

REFUSED = "`output_dir` must be used by one run at a time"


def take(run, connection):
    """Take the lock, send the error or None, and hold the lock until told to end."""
    try:
        lock = RunLock(run).acquire()
        connection.send(None)
    except ValueError as error:
        connection.send(str(error))
        lock = None
    connection.recv()
    if lock is not None:
        lock.release()


class Processes:
    """Several processes that take the lock at once, until `end`; `errors` has the error, or None, of each."""

    def __init__(self, run, number):
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe() for _ in range(number)]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [context.Process(target=take, args=(run, theirs)) for _, theirs in pipes]
        for process in self.processes:
            process.start()
        self.errors = [pipe.recv() for pipe in self.pipes if pipe.poll(60)]
        assert len(self.errors) == number

    def end(self):
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send("end")
            process.join()


@pytest.fixture
def start():
    """Return a function that starts processes, which end after the test."""
    started = []

    def start_processes(run, number=1):
        started.append(Processes(run, number))
        return started[-1]

    yield start_processes
    for processes in started:
        processes.end()


@pytest.fixture(params=["kernel", "file"])
def file_system(request, monkeypatch):
    """A file system with locks of the kernel, and one without."""
    if request.param == "file":

        def flock(*_):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr("fcntl.flock", flock)


@pytest.mark.usefixtures("file_system")
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_of_processes_that_start_together_one_gets_the_lock(tmp_path, start):
    processes = start(tmp_path / "run", 3)
    assert processes.errors.count(None) == 1
    assert all(error.startswith(REFUSED) for error in processes.errors if error is not None)


@pytest.mark.usefixtures("file_system")
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, start):
    (first,) = start(tmp_path).processes
    with pytest.raises(
        ValueError,
        match=rf"{REFUSED}, .*process {first.pid} on .* trains, started 20.*--steal_lock",
    ) as error:
        RunLock(tmp_path).acquire()
    assert "\n" not in str(error.value)
    (tmp_path / OWNER_FILE).write_text("damaged")
    with pytest.raises(ValueError, match=f"{REFUSED}, .* in which another process trains"):
        RunLock(tmp_path).acquire()


@pytest.mark.usefixtures("file_system")
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_lock_can_be_stolen(tmp_path, start):
    """The former owner, should it live, does not release the lock of the new one."""
    former = start(tmp_path)
    stolen = RunLock(tmp_path, steal=True).acquire()
    former.end()
    former.pipes.clear()
    former.processes.clear()
    assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()
    (refused,) = start(tmp_path).errors
    assert f"process {os.getpid()} on" in refused
    stolen.release()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("file_system")
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_released_lock_can_be_taken_again_and_removes_an_empty_folder(tmp_path):
    run = tmp_path / "new" / "run"
    for _ in range(2):
        RunLock(run).acquire().release()
        assert not run.exists(), "nothing was written into it"
    lock = RunLock(run).acquire()
    (run / "metrics.jsonl").touch()
    lock.release()
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_an_older_version_has_left_a_file(tmp_path):
    (tmp_path / LOCK_FILE).write_text('{"host": "elsewhere", "pid": 1}')
    RunLock(tmp_path).acquire().release()
    assert [*tmp_path.iterdir()] == [], "but the folder of the user stays"


HOLDER = """
import os, sys, time
from pathlib import Path
from telecine.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1])).acquire()
worker = os.fork()
if worker == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock_though_its_worker_lives(tmp_path):
    """A forked worker has the file open as well."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        worker = int(holder.stdout.readline())
        with pytest.raises(ValueError, match=rf"process {holder.pid} on"):
            RunLock(tmp_path).acquire()
        holder.kill()
        holder.wait()
        assert psutil.pid_exists(worker)
        RunLock(tmp_path).acquire().release()
        os.kill(worker, signal.SIGKILL)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError,
        match=r"that can be made, but got .*/file/run \(Not a directory; .* mounted at /",
    ):
        RunLock(tmp_path / "file" / "run").acquire()


def test_an_error_in_the_release_is_a_warning(tmp_path, caplog):
    """The error that has ended the run is not hidden."""
    lock = RunLock(tmp_path / "run").acquire()
    (tmp_path / "run" / OWNER_FILE).write_text("damaged")
    lock.release()
    assert f"cannot remove the lock of {tmp_path / 'run'}: " in caplog.text
