"""A tiny autoencoder and moving videos, with the fixtures of tiny runs."""

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
