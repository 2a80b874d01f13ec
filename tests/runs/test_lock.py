"""One process at a time trains in a folder."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from telecine.runs import lock
from telecine.runs.lock import RunLock, _started_at


def write(run, **holder):
    """Write the lock of another process."""
    run.mkdir(exist_ok=True)
    present = {"host": socket.gethostname(), "pid": os.getppid(), "started": _started_at(os.getppid())}
    (run / ".lock").write_text(json.dumps(present | holder))


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path):
    write(tmp_path)
    expected = rf"process {os.getppid()} on {socket.gethostname()} trains, started 20\d\d-.*--steal_lock"
    with pytest.raises(ValueError, match=expected) as error:
        RunLock(tmp_path)
    assert "\n" not in str(error.value)


def test_the_lock_of_another_machine_can_only_be_stolen(tmp_path):
    write(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(ValueError, match="process 1 on elsewhere"):
        RunLock(tmp_path)
    RunLock(tmp_path, steal=True)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def ended():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize("change", [lambda: {"pid": ended()}, lambda: {"started": 1e9}, lambda: {"pid": os.getpid()}])
def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, change):
    """Its number may belong to another process by now, or to this one: then it is one of an earlier run here."""
    write(tmp_path, **change())
    RunLock(tmp_path).release()
    assert not tmp_path.exists(), "nothing was written into it"


def test_a_lock_that_was_never_written_is_taken_over_after_a_while(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    path.touch()
    os.utime(path, (time.time() - 60,) * 2)
    RunLock(tmp_path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    path.write_text("")
    waited = []
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (waited.append(seconds), write(tmp_path)))
    with pytest.raises(ValueError, match="used by one run at a time"):
        RunLock(tmp_path)
    assert waited == [0.1], "its process was just writing it"


def test_a_stolen_lock_is_not_released_by_its_former_holder(tmp_path):
    former = RunLock(tmp_path)
    write(tmp_path)
    former.release()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getppid()


def test_only_an_empty_folder_is_removed(tmp_path):
    held = RunLock(tmp_path / "new" / "run")
    (tmp_path / "new" / "run" / "metrics.jsonl").touch()
    held.release()
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["metrics.jsonl"]


def test_a_folder_that_another_run_removes_is_made_again(tmp_path, monkeypatch):
    """The other one was refused, and found the folder empty."""
    run, opened = tmp_path / "run", lock._open

    def open_late(path):
        run.rmdir()
        monkeypatch.setattr(lock, "_open", opened)
        return opened(path)

    monkeypatch.setattr(lock, "_open", open_late)
    RunLock(run)
    assert (run / ".lock").is_file()


def test_an_empty_folder_of_the_user_stays(tmp_path):
    RunLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def without_kernel(monkeypatch):
    """A file system without locks of the kernel."""

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.mark.usefixtures("without_kernel")
@pytest.mark.parametrize("stale", [lambda: json.dumps({"host": socket.gethostname(), "pid": 1, "started": 1e9}), str])
@pytest.mark.parametrize("is_written", [True, False])
def test_a_lock_that_another_process_just_took_over_is_put_back(tmp_path, monkeypatch, stale, is_written):
    """Both have found the same stale lock; the other one is done before this one moves it away."""
    path = tmp_path / ".lock"
    path.write_text(stale())
    os.utime(path, (time.time() - 60,) * 2)
    move, moved, waited = lock.Path.rename, [], []

    def move_late(source, target):
        if not moved:
            path.unlink()
            write(tmp_path) if is_written else path.touch()
        moved.append(source)
        return move(source, target)

    monkeypatch.setattr(lock.Path, "rename", move_late)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (waited.append(seconds), write(tmp_path)))
    with pytest.raises(ValueError, match=f"process {os.getppid()} on"):
        RunLock(tmp_path)
    assert json.loads(path.read_text())["pid"] == os.getppid()
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    assert len(waited) == (not is_written), "its process was just writing it"


def take(run, connection):
    """Take the lock, send the error or None, and hold the lock until told to end."""
    try:
        RunLock(run)
        connection.send(None)
    except ValueError as error:
        connection.send(str(error))
    connection.recv()


def start_together(run, number):
    """Return the error, or None, of each of several processes that take the lock at once; all of them end."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(number)]
    processes = [context.Process(target=take, args=(run, theirs)) for _, theirs in pipes]
    for process in processes:
        process.start()
    errors = [ours.recv() for ours, _ in pipes if ours.poll(60)]
    for (ours, _), process in zip(pipes, processes, strict=True):
        ours.send("end")
        process.join()
    assert len(errors) == number
    return errors


@pytest.mark.parametrize(("number", "holder"), [(6, {}), (6, {"kernel": True}), (2, {})])
def test_of_processes_that_start_together_one_gets_the_lock(tmp_path, number, holder):
    """All find the lock of a process that is gone."""
    write(tmp_path, pid=ended(), **holder)
    errors = start_together(tmp_path, number)
    assert errors.count(None) == 1
    assert all("used by one run at a time" in error for error in errors if error is not None)


@pytest.mark.usefixtures("without_kernel")
def test_of_two_processes_that_start_together_one_gets_the_file(tmp_path):
    write(tmp_path, pid=ended())
    errors = start_together(tmp_path, 2)
    assert errors.count(None) == 1
    (refused,) = [error for error in errors if error is not None]
    assert "used by one run at a time" in refused


@pytest.fixture
def live(tmp_path):
    """A process that holds the lock."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=take, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() is None
    yield process
    ours.send("end")
    process.join()


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started": 1e9}, {"pid": os.getpid(), "process": "other"}])
def test_a_live_lock_does_not_depend_on_numbers_and_clocks(tmp_path, live, change):
    """As it looks from a container with the same host name, or after a step of the clock."""
    path = tmp_path / ".lock"
    written = json.loads(path.read_text())
    assert (written["pid"], written["kernel"]) == (live.pid, True)
    path.write_text(json.dumps(written | change))
    with pytest.raises(ValueError, match="used by one run at a time"):
        RunLock(tmp_path)
    assert path.exists()


def test_a_live_lock_can_be_stolen(tmp_path, live):
    held = RunLock(tmp_path, steal=True)
    (refused,) = start_together(tmp_path, 1)
    assert f"process {os.getpid()} on" in refused
    held.release()
    assert live.is_alive()


def test_a_killed_process_leaves_no_lock_though_its_worker_lives(tmp_path):
    """A forked worker has the file open as well."""
    script = (
        "import os, sys, time; from pathlib import Path; from telecine.runs.lock import RunLock; "
        "held = RunLock(Path(sys.argv[1])); worker = os.fork(); "
        "print(os.getpid(), flush=True) if worker == 0 else None; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        worker = int(holder.stdout.readline())
        with pytest.raises(ValueError, match=rf"process {holder.pid} on"):
            RunLock(tmp_path)
        holder.kill()
        holder.wait()
        assert psutil.pid_exists(worker)
        RunLock(tmp_path).release()
        os.kill(worker, signal.SIGKILL)
    assert not tmp_path.exists()


def test_this_process_takes_over_its_own_lock(tmp_path):
    """In a notebook, after an error."""
    RunLock(tmp_path)
    second = RunLock(tmp_path)
    second.release()
    assert not tmp_path.exists()


@pytest.mark.usefixtures("without_kernel")
def test_without_locks_of_the_kernel_the_file_alone_decides(tmp_path, caplog):
    run = tmp_path / "run"
    held = RunLock(run)
    assert "this file system has no locks of processes; the file alone names the owner" in caplog.text
    assert json.loads((run / ".lock").read_text())["kernel"] is None
    (refused,) = start_together(run, 1)
    assert f"process {os.getpid()} on" in refused
    held.release()
    assert not run.exists()


@pytest.mark.parametrize(
    "holder", [{"pid": "1"}, {"pid": -1}, {"pid": 2**80}, {"started": "x"}, {"started": 1e300}, {"host": None}]
)
def test_a_lock_of_other_types_names_nobody(tmp_path, holder):
    write(tmp_path, **holder)
    RunLock(tmp_path).release()
    assert not tmp_path.exists()


def test_a_lock_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r".lock` must be a regular file, but got a FIFO"):
        RunLock(tmp_path)


def test_a_file_system_that_cannot_be_written_is_named(tmp_path, monkeypatch, caplog):
    held = RunLock(tmp_path)

    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / ".lock"))

    with monkeypatch.context() as patched:
        patched.setattr(lock.Path, "unlink", fail)
        held.release()  # while the error that ended the run is raised
    assert f"cannot remove {tmp_path / '.lock'}: Read-only file system" in caplog.text
    monkeypatch.setattr(lock, "_open", fail)
    expected = (
        rf"`output_dir` must be a folder that can be made, but got {tmp_path} \(Read-only file system; its file sys"
    )
    with pytest.raises(ValueError, match=rf"{expected}tem is mounted at /"):
        RunLock(tmp_path)
