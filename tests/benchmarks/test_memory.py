"""The extra peak of a step is what it allocates at once, wherever it is freed again."""

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="without CUDA, a peak can only be reset on Linux")

MEASURE = """
from functools import partial
import os, torch
from memory import extra_peak
if __name__ == "__main__":
    print(extra_peak(partial, torch.ones, 5_000_000))
    print(extra_peak(partial, torch.ones, 25_000_000))
    print(extra_peak(partial, abs, 1))
    try:
        extra_peak(partial, os._exit, 3)
    except RuntimeError as error:
        print(error)
"""


def test_what_a_step_allocates_is_its_extra_peak(run):
    small, large, nothing, error = run("-c", MEASURE).splitlines()
    assert int(small) == pytest.approx(20e6, abs=3e6)
    assert int(large) == pytest.approx(100e6, rel=0.02)
    assert int(nothing) < 2e6
    assert "ended with exit code 3" in error
