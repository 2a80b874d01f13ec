"""The fixtures of tiny runs, and a clock that does not repeat what it measures."""

import pytest

from telecine.evaluation import speed

from ...training.conftest import one_thread, recorded_once, small_video, without_pictures

__all__ = ["one_thread", "recorded_once", "small_video", "without_pictures"]


@pytest.fixture(autouse=True)
def measured_once(monkeypatch, probe_each_configuration_once):
    """Measure the time of decoding once; no test reads it."""
    monkeypatch.setattr(speed, "NUM_WARM_UP", 0)
    monkeypatch.setattr(speed, "MIN_REPETITIONS", 1)
