"""The commands and the code of docs/channels.md run, with small clips and for one step."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from telecine.__main__ import main
from telecine.cli.program import COMMANDS as FUNCTIONS
from telecine.data import index_video, read_clip, sample_videos
from telecine.models import CausalVAE
from telecine.settings import CausalVAEConfig
from telecine.video.write import write_video

from .test_docs_data import SMALL, recorded_once
from .training.no_pictures import leave_pictures_out

__all__ = ["recorded_once"]
PAGE = (Path(__file__).parent.parent / "docs" / "channels.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^telecine .*", PAGE.replace("\\\n", ""), flags=re.MULTILINE)


def test_its_settings_fit_each_other():
    words = [shlex.split(command)[1:] for command in COMMANDS]
    settings = [FUNCTIONS[name].parse(typed)[0]["settings"] for name, *typed in words]
    assert [config.clips.num_channels for config in settings if hasattr(config, "clips")] == [
        4,
        2,
        4,
    ]


@pytest.mark.slow
def test_the_page(tmp_path, monkeypatch, cached_weights):
    assert len(COMMANDS) == 7
    monkeypatch.chdir(tmp_path)
    leave_pictures_out(monkeypatch.setattr)
    frames = read_clip(index_video(sample_videos()[0]), 0, 30, size=(32, 32))
    write_video(
        tmp_path / "my_alpha" / "face.mkv",
        torch.cat([frames, frames.amax(-1, keepdim=True)], -1),
        25,
    )
    (tmp_path / "my_arrays").mkdir()
    for number in range(2):
        np.save(
            tmp_path / "my_arrays" / f"{number}.npy",
            frames[..., :2].flip(number).numpy() / np.float32(64) - 1,
        )
    (tmp_path / "small.yaml").write_text(SMALL)
    config = CausalVAEConfig(
        spatial_compression=4, base_channels=8, blocks_per_level=1, channel_multipliers=(1,)
    )
    CausalVAE(config).save_pretrained(tmp_path / "rgb_model")
    for command in COMMANDS:
        name, *words = shlex.split(command)[1:]
        if name == "train":
            words = ["--config", "small.yaml", *words]
        assert main([name, *words]) == 0, command
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {"video": torch.zeros(1, 4, 1, 8, 8)}
    exec(compile(code, "channels.md", "exec"), names)
    assert names["reconstruction"].shape == (1, 4, 1, 8, 8)
