"""Clips of one colour: known values of each measure."""

import pytest
import torch
from torch import nn

from telecine.evaluation.measure import _FLAT_COLOURS, _LEVELS, measure_flat_colours
from telecine.models import as_video_autoencoder


class _Adds(nn.Module):
    """Returns its input plus a pattern `(C, T, H, W)`."""

    def __init__(self, pattern):
        super().__init__()
        self.in_channels = len(pattern)
        self.pattern, self.last_layer = pattern, nn.Parameter(torch.zeros(()))

    def forward(self, video):
        return video + self.pattern


def measured(pattern):
    model = as_video_autoencoder(_Adds(pattern / _LEVELS))
    return measure_flat_colours(model, *pattern.shape[1:])


SIZE = (3, 5, 8, 8)
CHEQUERBOARD = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).tile(3, 5, 4, 4)
SIGN = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])[None, :, None, None]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (torch.zeros(SIZE), (0, 0, 0)),
        (torch.full(SIZE, 3.0), (3, 0, 0)),
        (2 * CHEQUERBOARD, (0, 2, 0)),
        (2 * CHEQUERBOARD * SIGN, (0, 2, 4)),
    ],
)
def test_known_values(pattern, expected):
    assert tuple(measured(pattern).values()) == pytest.approx(expected, abs=1e-4)


def test_images_have_no_shimmer():
    assert set(measured(torch.zeros(3, 1, 8, 8))) == {"flat_error", "flat_grid"}


def test_the_colours_are_inside_the_range():
    assert len(set(_FLAT_COLOURS)) == 9
    assert torch.tensor(_FLAT_COLOURS).abs().max() < 1


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha(channels):
    values = measured(torch.full((channels, 5, 8, 8), -3.0))
    assert tuple(values.values()) == pytest.approx((3, 0, 0), abs=1e-4)
