"""The table of the metrics' agreement is printed, and they agree."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "agreement.py"
# scikit-image mirrors borders in another way, which at this size is a tenth of the pixels.
LIMITS = {"scikit-image (other borders)": 5e-3}


@pytest.mark.usefixtures("cached_weights")
def test_the_metrics_agree_with_other_implementations():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert len(lines) == 11
    for metric, value, other, difference in lines:
        assert float(value) != 0, metric
        assert float(difference) < LIMITS.get(other, 1e-3), metric
