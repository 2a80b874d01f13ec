"""The table of what each option costs is printed, and complete."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "options.py"


def test_the_table(cached_weights):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    title, _, *lines = done.stdout.splitlines()
    assert title.startswith("dim 1, 32 px, 4 frames, batch 1; ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[2][0] == "reference"
    assert all(re.fullmatch(r"\d+\.\d+ s", cell) for cell in rows[2][1:])
    assert len({name for name, *_ in rows[3:]}) == len(rows[3:]) == 31
    assert all(re.fullmatch(r"\d+\.\d+ x|-", cell) for _, *cells in rows[3:] for cell in cells)
    assert rows[-1][2] == "-"
