"""The long form, `benchmarks/faults.py`, with few attempts."""

import shutil
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.faults]

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"
# `test_ranks.py` has the ranks; the command line is slow to refuse lists, and each other kind takes half a minute.
FEW = {
    "media": 28,
    "lists": 0,
    "foreign": 14,
    "kills": 2,
    "kinds": 0,
    "probes": 0,
    "signals": 1,
    "two_runs": 1,
    "ranks": 0,
}
FEW |= {"starters": 2, "manifests": 20, "latents": 20}
# A C compiler builds what lets a disk fail.
FEW["disk_errors"] = 0 if shutil.which("cc") is None else 3


def test_every_promise_is_kept(forks):
    done = forks.run(
        str(SCRIPT), *(word for name, number in FEW.items() for word in (f"--{name}", str(number)))
    )
    assert done.returncode == 0, done.stderr[-2000:]
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in done.stdout.splitlines()
        if line[:1] == "|"
    )
    assert header == ["promise", "tried", "held", "failed"]
    assert [row for row in rows if row[3] != "0"] == [], done.stderr
    tried = [int(row[1]) for row in rows]
    assert tried.pop(2) > 30, "crafted files"
    assert tried[: len(FEW)] == [*FEW.values()]
    assert min(tried[len(FEW) :]) >= 7
    assert len(tried) == len(FEW) + 4
    assert tried[-1] > 50, "operations on files"
