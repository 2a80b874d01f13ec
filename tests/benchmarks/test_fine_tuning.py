import subprocess
import sys

import pytest

from telecine.cli.main import main


@pytest.fixture
def trainings(monkeypatch, without_pictures):
    """Run the script's trainings in this process, and return their command lines."""
    started, actual = [], subprocess.run

    def run(command, **settings):
        if command[:3] != [sys.executable, "-m", "telecine"]:
            return actual(command, **settings)
        started.append(command)
        with monkeypatch.context() as patch:
            patch.chdir(settings["cwd"])
            return subprocess.CompletedProcess(command, main(command[3:]))

    monkeypatch.setattr(subprocess, "run", run)
    return started


@pytest.mark.slow
def test_table(run_here, trainings, tables_in):
    text = run_here("fine_tuning.py", "--smoke")
    assert len(trainings) == 1
    header, rows = tables_in(text)[-1]
    assert header == ["class", "updates", "seconds", "PSNR before", "after", "LPIPS-Alex before", "after"]
    assert [name for name, *_ in rows] == ["AutoencoderKLWan"]
    for _, updates, *figures in rows:
        _, before, after, *_ = values = [float(cell) for cell in figures]
        assert updates == "6"
        assert min(values) > 0
        assert after > before + 0.5, "training raises the held-out PSNR"
