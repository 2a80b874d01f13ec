"""A folder with every kind of file that the report tells apart."""

import shutil

import pytest
import torch

from telecine.settings import ClipConfig, TrainConfig
from telecine.tools.data_report.examine import examine_data

from ...data.videos import moving_frames, write_video


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data_report") / "videos"
    folder.mkdir()
    scene = moving_frames(40, seed=1)
    write_video(folder / "scene.mp4", scene, g="10")
    write_video(folder / "again.mp4", scene, "libx264", g="5")
    shutil.copy(folder / "scene.mp4", folder / "copy.mp4")
    write_video(folder / "other.mp4", moving_frames(90, seed=2), g="90")
    write_video(
        folder / "still.mp4", moving_frames(1, seed=3).expand(40, -1, -1, -1).contiguous(), g="10"
    )
    write_video(folder / "black.mp4", torch.zeros(40, 48, 64, 3, dtype=torch.uint8), g="10")
    write_video(folder / "short.mp4", moving_frames(3, seed=4), g="10")
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("notes")
    return folder


@pytest.fixture(scope="session")
def config(data):
    return TrainConfig(
        data=str(data),
        batch_size=2,
        clips=ClipConfig(num_frames=5, height=32, width=40, num_workers=3),
    )


@pytest.fixture(scope="session")
def report(config):
    return examine_data(config, num_clips=20)
