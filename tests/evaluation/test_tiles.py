"""Tiles: bounded, aligned with the autoencoder's grid, and equal to whole frames where they can be."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine.autoencoders import Reconstruction
from telecine.evaluation.tiles import Tiling, pad_to, ramp, reconstruct_tiled, tile_starts


class Cells(nn.Module):
    """An autoencoder that sees no further than its 4 x 4 cells: their means. Remembers the shapes it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, video, sample_posterior=True):
        assert not sample_posterior
        self.seen.append(tuple(video.shape))
        means = F.avg_pool3d(video, (1, 4, 4))
        return Reconstruction(means.repeat_interleave(4, 3).repeat_interleave(4, 4), {})

    def covering_clip(self, num_frames, height, width):
        return 1 + 4 * -(-(num_frames - 1) // 4), 4 * -(-height // 4), 4 * -(-width // 4)


def clip(frames=5, height=40, width=56):
    return torch.rand(3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def whole(model, video):
    return reconstruct_tiled(model, video, Tiling())


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [
        (40, 56, 16, 0),
        (40, 56, 16, 8),
        (40, 56, 16, 12),
        (41, 55, 16, 4),
        (40, 56, 24, 7),
        (16, 90, 16, 5),
        (3, 70, 8, 4),
    ],
)
def test_equal_whole_frames_where_the_model_sees_no_further_than_a_cell(height, width, tile, overlap):
    model, video = Cells(), clip(height=height, width=width)
    tiled = reconstruct_tiled(model, video, Tiling(tile, overlap).fitted_to(model))
    assert tiled.shape == video.shape
    torch.testing.assert_close(tiled, whole(Cells(), video), atol=1e-6, rtol=0)
    assert len(model.seen) > 1


@pytest.mark.parametrize("size", [(16, 16), (13, 9), (4, 16)])
def test_one_tile_that_covers_all_changes_nothing(tiny_model, size):
    video = clip(4, *size)
    assert torch.equal(reconstruct_tiled(tiny_model, video, Tiling(16, 8)), whole(tiny_model, video))


def test_the_model_never_sees_more_than_a_tile():
    largest = []
    for height, width in ((40, 56), (120, 200), (90, 400)):
        model = Cells()
        reconstruct_tiled(model, clip(6, height, width), Tiling(32, 8).fitted_to(model))
        largest.append(max(model.seen))
    assert largest == [(1, 3, 9, 32, 32)] * 3


@pytest.fixture(scope="module")
def random_model(tiny_model):
    """Every layer does something: at the start, residual branches are 0."""
    model = copy.deepcopy(tiny_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def reach_of(model, side=192):
    """Return how many columns away a change of one stride's cell is felt."""
    video = clip(1, 8, side)
    changed = video.clone()
    changed[..., side // 2 : side // 2 + 4] += 1.0
    columns = (whole(model, changed) - whole(model, video)).abs().amax((0, 1, 2)).gt(1e-6).nonzero()[:, 0]
    return int(max(side // 2 - columns.min(), columns.max() - side // 2 - 3))


def test_outside_the_overlap_tiles_equal_whole_frames_if_it_is_as_wide_as_the_model_sees(random_model):
    reach = reach_of(random_model)
    assert 8 < reach <= 64
    tiling = Tiling(128, 64).fitted_to(random_model)
    video = clip(5, 16, 192)
    assert tile_starts(192, tiling) == [0, 64]
    difference = (reconstruct_tiled(random_model, video, tiling) - whole(random_model, video)).abs()
    outside = torch.cat([difference[..., :64], difference[..., 128:]], dim=-1)
    assert outside.max() < 1e-5
    # Inside, each tile's edge counts with its share: for this model 2 % of the frames' spread.
    scale = whole(random_model, video).std()
    assert difference[..., 64:128].mean() < 0.03 * scale


def test_wider_overlaps_come_nearer(random_model):
    video = clip(1, 16, 144)
    goal = whole(random_model, video)
    errors = [
        (reconstruct_tiled(random_model, video, Tiling(96, overlap)) - goal).square().mean() for overlap in (0, 16, 48)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_sizes_are_fitted_to_the_model():
    assert Tiling(30, 5).fitted_to(Cells()) == Tiling(32, 8)
    assert Tiling(8, 7).fitted_to(Cells()) == Tiling(8, 4)
    assert Tiling(3, 0).fitted_to(Cells()) == Tiling(4, 0)
    assert Tiling().fitted_to(Cells()) == Tiling()


@pytest.mark.parametrize(
    ("side", "expected"), [(10, [0]), (16, [0]), (20, [0, 4]), (28, [0, 12]), (30, [0, 12, 14]), (40, [0, 12, 24])]
)
def test_tiles_end_with_the_frame(side, expected):
    assert tile_starts(side, Tiling(16, 4)) == expected


def test_weights_add_up_to_1_over_a_regular_overlap():
    total = torch.zeros(28)
    total[:16] += ramp(0, 16, 28, 4)
    total[12:] += ramp(12, 16, 28, 4)
    torch.testing.assert_close(total, torch.ones(28))


def test_padding_repeats_the_last_of_each_axis():
    video = clip(2, 3, 5)
    padded = pad_to(video, (5, 4, 8))
    assert padded.shape == (3, 5, 4, 8)
    assert torch.equal(padded[:, :2, :3, :5], video)
    assert torch.equal(padded[:, 4, 3, 7], video[:, 1, 2, 4])


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (0, 0, "`tile` must be at least 1"),
        (16, 16, "below the tile's 16"),
        (16, -1, "`tile_overlap` must be at least 0"),
    ],
)
def test_refusals(size, overlap, message):
    with pytest.raises(ValueError, match=message):
        Tiling(size, overlap)
