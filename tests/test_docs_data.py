"""The commands of docs/data.md run, with small clips and for one step."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import telecine
from telecine.__main__ import main
from telecine.data import index_video, read_clip, sample_videos
from telecine.data.lists import read_list
from telecine.data.mapped import read_mapped
from telecine.settings import ClipConfig
from telecine.video.write import write_video

from .training.conftest import recorded_once
from .training.no_pictures import leave_pictures_out

__all__ = ["recorded_once"]
PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]
# Settings that make a run small. None of them is a subject of the page.
SMALL = """
steps: 1
batch_size: 1
val_clips: 1
device: cpu
trackers: []
clips: {num_frames: 5, height: 32, width: 32, num_workers: 0}
causal_vae: {time_compression: 4, spatial_compression: 4, latent_channels: 4, patch_size: 4, channel_multipliers: [1],
  base_channels: 8, blocks_per_level: 1}
linear_baseline: false
latent_clips: 2
linear_start: false
objective: {perceptual_weight: 0, adversarial_loss_weight: 0, grad_penalty_loss_weight: 0}
discriminator: {video: none, image: none}
"""
SMALLER = {"256": "32", "384": "48", "128": "32", "192": "40", "17": "5", "33": "9"}


def block(kind):
    """Return the only block of a language in the page."""
    (text,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)
    return text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Change to a directory with the files that the page names."""
    face, street, *_ = sample_videos()
    for name in ("my_videos", "my_images"):
        (tmp_path / name).mkdir()
    for name, video, num_frames in (("face", face, 60), ("street", street, 150)):
        frames = read_clip(index_video(video), 0, num_frames, size=(48, 64))
        write_video(tmp_path / "my_videos" / f"{name}.mp4", frames, fps=25)
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 90, 100)).save(
            tmp_path / "my_images" / f"{number}.png"
        )
    (tmp_path / "scenes.csv").write_text(block("csv"))
    (tmp_path / "scenes.jsonl").write_text(block("json"))
    sizes = re.sub(
        r"\b\d+\b", lambda number: SMALLER.get(number.group(), number.group()), block("yaml")
    )
    (tmp_path / "sizes.yaml").write_text(sizes)
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    leave_pictures_out(monkeypatch.setattr)
    return tmp_path


def run(command):
    """Run a command of the page. Training commands get the settings of a small run."""
    words = shlex.split(command)
    if words[:2] == ["telecine", "train"]:
        assert main(["train", "--config", "small.yaml", *words[2:]]) == 0, command
    elif words[0] == "telecine":
        assert main(words[1:]) == 0, command
    else:
        subprocess.run(words, check=True, timeout=120)


@pytest.mark.slow
def test_the_commands(folder, cached_weights):
    assert len(COMMANDS) == 19
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for command in COMMANDS:
        run(command)
    torch.set_num_threads(before)
    runs = sorted(path.parent.name for path in (folder / "runs").glob("*/checkpoints"))
    names = "by_file by_time cache csv folder held_out images jsonl lazy mixed shards sizes workers"
    assert runs == names.split()
    assert (folder / "my_videos" / ".telecine-index.d").exists()
    sizes = yaml.safe_load((folder / "runs" / "sizes" / "config.yaml").read_text())["clips"][
        "buckets"
    ]
    assert [size["num_frames"] for size in sizes] == [5, 9, 1]
    assert [segment.start for segment in read_list(folder / "scenes.csv")] == [0.0, 4.2, None]
    assert [segment.end_frame for segment in read_list(folder / "scenes.jsonl")] == [60, None]


def test_the_python_of_the_page():
    config_block, dataset_block = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {"telecine": telecine, "torch": torch}
    exec(config_block, names)
    assert names["config"].data == ("my_videos/", "scenes.csv")
    exec(dataset_block, names)
    clip = read_mapped(names["Noise"](), 3, ClipConfig(17, 64, 64))
    assert (clip["source"], clip["video"].shape) == ("dataset[3]", (3, 17, 64, 64))
