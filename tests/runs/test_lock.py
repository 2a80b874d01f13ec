"""One process at a time trains in a folder."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

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


@pytest.mark.parametrize("stale", [lambda: json.dumps({"host": socket.gethostname(), "pid": 1, "started": 1e9}), str])
@pytest.mark.parametrize("is_written", [True, False])
def test_a_lock_that_another_process_just_took_over_is_put_back(tmp_path, monkeypatch, stale, is_written):
    """Both have found the same stale lock; the other one is done before this one moves it away."""
    path = tmp_path / ".lock"
    path.write_text(stale())
    os.utime(path, (time.time() - 60,) * 2)
    move, moved, waited = lock._move, [], []

    def move_late(source, target):
        if not moved:
            path.unlink()
            write(tmp_path) if is_written else path.touch()
        moved.append(source)
        return move(source, target)

    monkeypatch.setattr(lock, "_move", move_late)
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


def test_of_two_processes_that_start_together_one_gets_the_lock(tmp_path):
    """Both find the lock of a process that is gone."""
    write(tmp_path, pid=ended())
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(2)]
    both = [context.Process(target=take, args=(tmp_path, theirs)) for _, theirs in pipes]
    for process in both:
        process.start()
    errors = [ours.recv() for ours, _ in pipes if ours.poll(60)]
    for (ours, _), process in zip(pipes, both, strict=True):
        ours.send("end")
        process.join()
    assert errors.count(None) == 1
    (refused,) = [error for error in errors if error is not None]
    assert "used by one run at a time" in refused
