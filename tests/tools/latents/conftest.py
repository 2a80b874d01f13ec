"""A tiny autoencoder and moving videos, with the fixtures of tiny runs."""

import pytest

from ...evaluation.conftest import model_folder, tiny_model, videos
from ...training.conftest import one_thread, recorded_once, without_pictures

__all__ = [
    "model_folder",
    "one_thread",
    "recorded_once",
    "tiny_model",
    "videos",
    "without_pictures",
]


@pytest.fixture(autouse=True)
def small_samples(monkeypatch):
    """Draw samples in 4 steps, and show each once. Their quality is not tested."""
    monkeypatch.setattr("telecine.tools.latents.denoising._SAMPLE_STEPS", 4)
    monkeypatch.setattr("telecine.report.clips.MIN_SECONDS", 0.1)
