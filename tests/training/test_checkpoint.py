"""What is checked of a checkpoint. Whole runs that resume are in `test_loop.py`."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telecine.settings import ObjectiveConfig, PerceptualConfig
from telecine.training import TrainingError, train


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
    result = train(config, autoencoder=Masked(-math.inf))
    (path,) = (result.checkpoint / "model").glob("*.safetensors")
    assert load_file(path)["mask"].tolist() == [0.0, -math.inf]
    config = replace(config, output_dir=f"{config.output_dir}-nan")
    with pytest.raises(
        TrainingError, match=r"`module\.mask of the model` is not finite after step 1"
    ):
        train(config, autoencoder=Masked(math.nan))
