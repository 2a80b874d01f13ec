"""Settings of tiny distillations, with the fixtures of tiny runs."""

import shutil

import pytest

from ...models.tiny_models import tiny_model
from ...training.conftest import one_thread, recorded_once, small_video, without_pictures

__all__ = ["one_thread", "recorded_once", "small_video", "without_pictures"]

SETTINGS = """
steps: 2
batch_size: 1
save_every: 1
val_clips: 1
device: cpu
trackers: []
clips: {num_frames: 5, height: 32, width: 32, num_workers: 0, num_clips: 2}
latent_clips: 1
linear_baseline: false
objective: {disc_start: 0, adversarial_loss_weight: 0.1, perceptual_weight: 0, grad_penalty_loss_weight: 0,
  gan: {disc_train_start: 0}, terms: {wavelet: 0.1}}
discriminator: {video: patch, dim: 1, num_layers: 2}
student: student.yaml
data: clip.mp4
"""


@pytest.fixture(scope="session")
def saved_wan(tmp_path_factory):
    """Return the folder of a tiny Wan."""
    folder = tmp_path_factory.mktemp("wan")
    tiny_model("wan").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(
    tmp_path, monkeypatch, cached_weights, small_video, saved_wan, probe_each_configuration_once
):
    """Have a tiny Wan, a video and the settings in the working directory."""
    shutil.copytree(saved_wan, tmp_path / "wan")
    (tmp_path / "clip.mp4").symlink_to(small_video)
    (tmp_path / "distill.yaml").write_text(SETTINGS)
    (tmp_path / "student.yaml").write_text("base_channels: 8\nblocks_per_level: 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("telecine.training.baseline.NUM_CLIPS", 2)
    return tmp_path
