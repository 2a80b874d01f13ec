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


def test_a_cut_of_a_video_has_the_values_of_its_pixels(photographs):
    still = picture(96, 128).movedim(0, -1).byte().expand(3, -1, -1, -1)
    assert torch.equal(photographs.cut_of_video(still, random.Random(0)), still)


def test_a_window_turns_around_its_centre(photographs):
    dot = torch.zeros(3, 301, 301)
    dot[:, 148:153, 148:153] = 255
    for angle in (0.0, 0.5, 1.5):
        shown = photographs._shown(dot, photographs._View(0.5, 0.5, 1.0, angle))[..., 0].float()
        row, column = (
            (shown.sum(axis) * torch.arange(n)).sum() / shown.sum()
            for axis, n in ((1, 96), (0, 128))
        )
        assert (float(row), float(column)) == pytest.approx((47.5, 63.5), abs=0.1)
