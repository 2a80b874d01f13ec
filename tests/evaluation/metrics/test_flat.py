"""Clips of one colour: known values of each measure."""

import pytest
import torch
from torch import nn

from telecine.evaluation.metrics.flat import measure_flat_colours
from telecine.models import as_video_autoencoder

LEVELS = 127.5  # a difference of 1, in levels of 8 bits
SIZE = (3, 5, 8, 8)
CHEQUERBOARD = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).tile(3, 5, 4, 4)
SIGN = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])[None, :, None, None]


class Adds(nn.Module):
    """Returns its input plus a pattern `(C, T, H, W)`, and records the colours of its inputs."""

    def __init__(self, pattern):
        super().__init__()
        self.in_channels = len(pattern)
        self.pattern = pattern
        self.last_layer = nn.Parameter(torch.zeros(()))
        self.colours = []

    def forward(self, video):
        self.colours.append(video[0, :, 0, 0, 0])
        return video + self.pattern


def measured(pattern):
    return measure_flat_colours(as_video_autoencoder(Adds(pattern / LEVELS)), *pattern.shape[1:])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (torch.zeros(SIZE), (0, 0, 0)),
        (torch.full(SIZE, 3.0), (3, 0, 0)),
        (2 * CHEQUERBOARD, (0, 2, 0)),
        (2 * CHEQUERBOARD * SIGN, (0, 2, 4)),
        (torch.full((1, 5, 8, 8), -3.0), (3, 0, 0)),  # grey
        (torch.full((4, 5, 8, 8), -3.0), (3, 0, 0)),  # RGBA
    ],
)
def test_known_values(pattern, expected):
    assert tuple(measured(pattern).values()) == pytest.approx(expected, abs=1e-4)


def test_images_have_no_shimmer():
    assert set(measured(torch.zeros(3, 1, 8, 8))) == {"flat_error", "flat_grid"}


def test_there_are_nine_colours_inside_the_range():
    module = Adds(torch.zeros(SIZE))
    measure_flat_colours(as_video_autoencoder(module), *SIZE[1:])
    colours = torch.stack(module.colours)
    assert len(colours.unique(dim=0)) == 9
    assert colours.abs().max() < 1
