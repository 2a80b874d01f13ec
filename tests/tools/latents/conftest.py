"""A tiny autoencoder and moving videos, with the fixtures of tiny runs."""

import runpy
from pathlib import Path

import pytest
import torch

from telecine.models import CausalVAE
from telecine.settings import CausalVAEConfig
from telecine.video.write import write_video

from ...training.conftest import one_thread, recorded_once, without_pictures

__all__ = ["one_thread", "recorded_once", "without_pictures"]
waves = runpy.run_path(str(Path(__file__).parents[2] / "evaluation" / "videos.py"))["waves"]


@pytest.fixture(scope="session")
def tiny_config():
    return CausalVAEConfig(
        time_compression=4,
        spatial_compression=4,
        latent_channels=4,
        patch_size=2,
        base_channels=8,
        blocks_per_level=1,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    torch.manual_seed(0)
    return CausalVAE(tiny_config).eval()


@pytest.fixture(scope="session")
def model_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder of three videos of 26 frames of 48 x 64."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("one.mp4", "two.mp4", "three.mp4")):
        write_video(folder / name, waves(seed=seed), fps=25, crf=4)
    return folder
