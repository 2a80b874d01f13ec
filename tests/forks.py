"""Python's command line in forks of the test process, which need not import again what the tests have imported.

The forks are made by a copy of the test process from before its first test: a process can no longer be forked after a
backward on a machine with a GPU, or after a computation on several threads.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGKILL

import jaxtyping
import torch
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher import api

CONTEXT = multiprocessing.get_context("fork")


@dataclass
class Fork:
    """A running command. Its process leads a process group, and `pid` is the number of both.

    It is killed at the end of a `with` statement that has not waited for it.
    """

    words: tuple[str, ...]
    pid: int
    connection: Connection
    folder: tempfile.TemporaryDirectory
    done: subprocess.CompletedProcess | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.done is None:
            self.wait(timeout=0)

    def has_ended(self):
        return self.connection.poll()

    def printed(self):
        """Return what was printed so far."""
        return Path(self.folder.name, "out").read_text(encoding="utf-8")

    def wait_until(self, condition, timeout=240):
        """Wait until a condition holds, which the command must not end before."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert not self.has_ended(), "the command ended before"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait(self, timeout=900):
        """Return the exit code and what was printed; after `timeout` seconds, the command is killed."""
        if not self.connection.poll(timeout):
            os.killpg(self.pid, SIGKILL)
        code = self.connection.recv()
        with self.folder:
            printed = [
                Path(self.folder.name, name).read_text(encoding="utf-8") for name in ("out", "err")
            ]
        self.done = subprocess.CompletedProcess(self.words, code, *printed)
        return self.done


class ForkServer:
    """Runs commands one after the other, each in a fork on one thread."""

    def __init__(self):
        self._connection, theirs = CONTEXT.Pipe()
        self._pid = (
            os.fork()
        )  # not a `Process`, which tests of worker processes would find among theirs
        if self._pid == 0:
            self._connection.close()  # so that the end of the test process ends this one
            _serve(theirs)
        theirs.close()

    def start(self, *words):
        """Start what `python WORDS` would, in the current folder."""
        folder = tempfile.TemporaryDirectory()
        self._connection.send((words, folder.name, os.getcwd(), dict(os.environ)))
        return Fork(words, self._connection.recv(), self._connection, folder)

    def run(self, *words):
        """Run what `python WORDS` would, and return the exit code and what was printed."""
        return self.start(*words).wait()

    def close(self):
        self._connection.close()
        _, status = os.waitpid(self._pid, 0)
        assert status == 0, "the server of forks has failed"


def _serve(connection):
    """Run commands until the connection is closed, and never return to the copied tests."""
    code = 1
    try:
        while True:
            process = CONTEXT.Process(target=_run, args=(connection, *connection.recv()))
            process.start()
            process.join()
            connection.send(process.exitcode)
    except EOFError:
        code = 0
    finally:
        if code != 0:
            traceback.print_exc()
        os._exit(code)


def _run(connection, words, folder, working_directory, environment):
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        with open(Path(folder, name), "wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", encoding="utf-8") for descriptor in (1, 2))
    connection.send(os.getpid())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(working_directory)
    torch.set_num_threads(1)
    jaxtyping.config.update("jaxtyping_disable", True)  # commands run as for their users
    api.launch_agent = _fork_workers
    # For its events, `torchrun` searches all imported modules for those of its call stack, which takes seconds.
    dynamic_rendezvous.get_method_name = lambda depth=2: "unknown"
    _command_line(*words)


def _command_line(first, *words):
    """Do what `python FIRST WORDS` does."""
    if first == "-m":
        sys.argv = list(words)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *words]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")


def _fork_workers(config, entrypoint, words, start=api.launch_agent, **options):
    """Do what `torchrun` and `accelerate launch` do, but fork the processes instead of starting Python."""
    assert (entrypoint, words[0]) == (sys.executable, "-u")
    config.start_method = "fork"
    return start(config, _worker, words[1:], **options)


def _worker(*words):
    try:
        _command_line(*words)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"ended with {stop.code}") from stop
