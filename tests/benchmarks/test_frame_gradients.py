"""The table of the frames' shares is printed, and complete."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "frame_gradients.py"


def test_the_table():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    header, rule, *lines = done.stdout.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rule.count("|") == header.count("|") == 5
    assert [row[1] for row in rows] == ["9"] * 5 + ["17"] * 5
    names = [row[0] for row in rows]
    assert names[:5] == names[5:]
    assert len(set(names)) == 5
    for _, frames, ratio, shares in rows:
        values = [float(share) for share in shares.split()]
        assert len(values) == int(frames)
        assert sum(values) / len(values) == pytest.approx(1, abs=0.01)
        others = sum(values[1:]) / (len(values) - 1)
        assert float(ratio) == pytest.approx(values[0] / others, rel=0.05)
