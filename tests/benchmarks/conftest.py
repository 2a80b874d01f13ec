"""Running a benchmark as its user does, and reading the tables that it prints."""

import importlib
import os
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(cached_weights):
    """Return a function that runs a script of `benchmarks/`, or Python in its folder, on one thread."""

    def run_script(*arguments, returns=0):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=FOLDER,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == returns, done.stderr
        return done.stdout if returns == 0 else done.stderr

    return run_script


@pytest.fixture
def run_here(cached_weights, monkeypatch, capsys):
    """Return a function that runs a script of `benchmarks/` in this process, where most of its imports are made.

    Only what measures memory, or is to be stopped, needs a process of its own.
    """

    def run_script(name, *arguments, returns=0):
        monkeypatch.syspath_prepend(str(FOLDER))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        num_threads = torch.get_num_threads()
        with nullcontext() if returns == 0 else pytest.raises(SystemExit) as stop:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        torch.set_num_threads(num_threads)
        printed = capsys.readouterr()
        if returns == 0:
            return printed.out
        assert stop.value.code == returns
        return printed.err

    return run_script


@pytest.fixture
def tables_in():
    """Return a function that finds the tables of a text: each as its header and the cells of its lines by the first."""

    def find(text):
        found, previous = [], ""
        for line in text.splitlines():
            if line.startswith("|"):
                first, *others = [cell.strip() for cell in line.strip("|").split("|")]
                if not previous.startswith("|"):
                    found.append(([first, *others], {}))
                elif first != "---":
                    assert first not in found[-1][1], "a line says what it is about"
                    assert len(others) == len(found[-1][0]) - 1
                    found[-1][1][first] = others
            previous = line
        return found

    return find


@pytest.fixture
def twin(monkeypatch):
    """Return the module `benchmarks/twin.py`."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("twin")
