"""The notes of a run that resumes, and which process copies what. Whole runs that resume are in `test_loop.py`."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telecine.runs.saved_settings import as_yaml
from telecine.settings import ObjectiveConfig, PerceptualConfig
from telecine.training import TrainingError, train
from telecine.training.resume import describe_changes

from .helpers import quiet


@pytest.fixture
def saved(tiny, tmp_path):
    """Return the folder of a checkpoint of the tiny run that holds its settings only."""
    (tmp_path / "config.yaml").write_text(as_yaml(tiny()))
    return tmp_path


def notes(config, folder, num_processes=1, **saved):
    return describe_changes(
        config, folder, {"num_processes": 1, "clips_per_step": 2, **saved}, num_processes
    )


def test_the_notes_of_a_resumed_run(tiny, saved):
    first = f"resuming from {saved}"
    assert notes(tiny(output_dir="elsewhere"), saved) == [first], "the folder may move"
    changed = tiny(seed=7, optimizer=replace(tiny().optimizer, lr=1e-4))
    note = "settings changed since the checkpoint: seed 0 -> 7, optimizer.lr 0.001 -> 0.0001"
    assert notes(changed, saved) == [first, note]
    note = "the model is now b instead of None; its weights are those of the checkpoint"
    assert notes(tiny(model="b"), saved) == [first, note]
    (_, note) = notes(tiny(), saved, num_processes=2)
    assert note.startswith("an update now has 4 clips instead of 2: ")
    (_, note) = notes(tiny(), saved, clips_per_step=4, num_processes=2)
    assert note.startswith(
        "now 2 processes instead of 1: the clips and the noise drawn for them stay the same, "
    )


class Masked(nn.Module):
    """An autoencoder with a buffer that is saved, such as the mask of an attention."""

    def __init__(self, value):
        super().__init__()
        self.config = {"value": value}
        self.layer = nn.Conv3d(3, 3, 1)
        self.register_buffer("mask", torch.tensor([0.0, value]))

    def forward(self, video):
        return self.layer(video)


@pytest.mark.slow
def test_of_buffers_only_nan_is_refused(tiny):
    config = tiny(
        steps=1, save_every=1, objective=ObjectiveConfig(perceptual=PerceptualConfig(net="alex"))
    )
    result = train(config, autoencoder=Masked(-math.inf), console=quiet())
    (path,) = (result.checkpoint / "model").glob("*.safetensors")
    assert load_file(path)["mask"].tolist() == [0.0, -math.inf]
    config = replace(config, output_dir=f"{config.output_dir}-nan")
    with pytest.raises(
        TrainingError, match=r"`module\.mask of the model` is not finite after step 1"
    ):
        train(config, autoencoder=Masked(math.nan), console=quiet())
