import itertools
import random

import pytest
import torch


@pytest.fixture
def photographs(benchmark_module):
    return benchmark_module("photographs")


def picture(height, width):
    """Return values that differ everywhere, `(3, height, width)`, from 0 to 255."""
    rows = torch.linspace(0, 255, height)[:, None]
    columns = torch.linspace(0, 255, width)
    return torch.stack([rows.expand(-1, width), columns.expand(height, -1), (rows + columns) / 2])


@pytest.mark.parametrize("size", [(300, 500), (700, 300), (96, 128)])
def test_a_camera_moves_over_a_photograph(photographs, size):
    clip = photographs.clip_of_photograph(picture(*size), random.Random(0))
    assert clip.shape == (33, 96, 128, 3)
    assert clip.dtype == torch.uint8
    assert all((a != b).any() for a, b in itertools.pairwise(clip)), "each frame is another one"
    assert torch.equal(clip, photographs.clip_of_photograph(picture(*size), random.Random(0)))
    assert not torch.equal(clip, photographs.clip_of_photograph(picture(*size), random.Random(1)))
