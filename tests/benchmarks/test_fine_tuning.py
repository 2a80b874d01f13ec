"""The table of what fine-tuning does to published classes is printed, and complete, and it does them good."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from telecine.cli import main

NO_PICTURES = runpy.run_path(str(Path(__file__).parents[1] / "training" / "no_pictures.py"))


@pytest.fixture
def trains_here(monkeypatch):
    """Run the trainings that the script starts in this process, without pictures; return how many there were."""
    started, actual = [], subprocess.run

    def run(command, **settings):
        if command[:3] != [sys.executable, "-m", "telecine"]:
            return actual(command, **settings)
        started.append(command)
        with monkeypatch.context() as patch:
            NO_PICTURES["leave_pictures_out"](patch.setattr)
            patch.chdir(settings["cwd"])
            return subprocess.CompletedProcess(command, main(command[3:]))

    monkeypatch.setattr(subprocess, "run", run)
    return started


def test_the_table(run_here, trains_here, tables_in):
    text = run_here("fine_tuning.py", "--smoke")
    assert len(trains_here) == 2
    header, lines = tables_in(text)[-1]
    assert header == ["class", "updates", "seconds", "PSNR before", "after", "LPIPS-Alex before", "after"]
    assert list(lines) == ["AutoencoderKLCogVideoX", "AutoencoderKLWan"]
    for updates, *figures in lines.values():
        _, before, after, *_ = values = [float(cell) for cell in figures]
        assert updates == "30"
        assert min(values) > 0
        assert after > before + 1, "a decibel of held-out PSNR"
