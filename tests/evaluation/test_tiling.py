"""Chunks and tiles: bounded size, aligned with the latent grid, and equal to whole videos where possible."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine.evaluation.tiling import (
    blended_chunks,
    count_chunks,
    overlapping_chunks,
    reconstruct_tiled,
    rounded_tiling,
)
from telecine.models import Reconstruction
from telecine.models.interface import ClipPosition
from telecine.settings import Tiling


def numbered(count):
    return [torch.full((2, 2, 3), number, dtype=torch.uint8) for number in range(count)]


def numbers(chunk):
    return chunk[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("total", "overlap", "expected"),
    [
        (10, 0, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (8, 0, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (10, 1, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]),
        (9, 2, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8]]),
        (5, 3, [[0, 1, 2, 3], [1, 2, 3, 4]]),
        (2, 3, [[0, 1]]),
        (0, 1, []),
    ],
)
def test_chunks_overlap(total, overlap, expected):
    chunks = [numbers(chunk) for chunk in overlapping_chunks(numbered(total), 4, overlap)]
    assert chunks == expected
    if total:
        assert count_chunks(total, 4, overlap) == len(expected)


@pytest.mark.parametrize("overlap", range(4))
def test_blended_chunks_yield_every_frame_once_with_its_reconstruction(overlap):
    model = CellMeans()

    def reconstruct(chunk):
        assert model.position.first_frame == numbers(chunk)[0]
        return chunk.float() + 0.5

    for total in range(1, 15):
        chunks = overlapping_chunks(numbered(total), 4, overlap)
        pairs = list(blended_chunks(model, chunks, overlap, reconstruct))
        frames, reconstructions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        assert numbers(frames) == list(range(total))
        torch.testing.assert_close(reconstructions, frames.float() + 0.5)


def test_overlapping_chunks_are_blended_linearly():
    levels = iter([0.0, 1.0])
    chunks = overlapping_chunks(numbered(9), 6, 3)
    pairs = blended_chunks(CellMeans(), chunks, 3, lambda chunk: torch.full(chunk.shape, next(levels)))
    values = torch.cat([reconstruction for _, reconstruction in pairs])[:, 0, 0, 0]
    assert values.tolist() == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.parametrize("overlap", [-1, 4])
def test_an_overlap_as_long_as_the_chunk_raises(overlap):
    with pytest.raises(ValueError, match="`overlap_frames` must be at least 0 and below the chunk's 4"):
        list(overlapping_chunks(numbered(9), 4, overlap))


class CellMeans(nn.Module):
    """An autoencoder whose receptive field is one 4 x 4 cell: it returns the means of cells. Records input shapes."""

    position = ClipPosition()

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, video, sample_posterior=True):
        assert not sample_posterior
        self.shapes.append(tuple(video.shape))
        means = F.avg_pool3d(video, (1, 4, 4))
        return Reconstruction(means.repeat_interleave(4, 3).repeat_interleave(4, 4), {})

    def covering_clip(self, num_frames, height, width):
        return 1 + 4 * -(-(num_frames - 1) // 4), 4 * -(-height // 4), 4 * -(-width // 4)


def random_clip(frames=5, height=40, width=56):
    return torch.rand(3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def reconstruct_whole(model, video):
    return reconstruct_tiled(model, video, Tiling())


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(40, 56, 16, 0), (40, 56, 16, 12), (41, 55, 16, 4), (40, 56, 24, 7), (3, 70, 8, 4)],
)
def test_tiles_equal_whole_frames_if_the_receptive_field_is_one_cell(height, width, tile, overlap):
    model, video = CellMeans(), random_clip(height=height, width=width)
    tiled = reconstruct_tiled(model, video, rounded_tiling(Tiling(tile, overlap), model))
    assert tiled.shape == video.shape
    torch.testing.assert_close(tiled, reconstruct_whole(CellMeans(), video), atol=1e-6, rtol=0)
    assert len(model.shapes) > 1


@pytest.mark.parametrize("size", [(16, 16), (13, 9), (4, 16)])
def test_a_frame_that_fits_into_one_tile_is_not_tiled(tiny_model, size):
    video = random_clip(4, *size)
    assert torch.equal(reconstruct_tiled(tiny_model, video, Tiling(16, 8)), reconstruct_whole(tiny_model, video))


def test_the_model_never_gets_more_than_a_tile():
    for height, width in ((40, 56), (90, 400)):
        model = CellMeans()
        reconstruct_tiled(model, random_clip(6, height, width), rounded_tiling(Tiling(32, 8), model))
        assert set(model.shapes) == {(1, 3, 9, 32, 32)}


@pytest.fixture(scope="module")
def random_model(tiny_model):
    """The tiny model with noise on all weights, because its residual branches are initialized to 0."""
    model = copy.deepcopy(tiny_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_wider_overlaps_reduce_the_error(random_model):
    video = random_clip(1, 16, 144)
    expected = reconstruct_whole(random_model, video)
    errors = [
        (reconstruct_tiled(random_model, video, Tiling(96, overlap)) - expected).square().mean()
        for overlap in (0, 16, 48)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_tiling_is_rounded_for_the_model():
    assert rounded_tiling(Tiling(30, 5), CellMeans()) == Tiling(32, 8)
    assert rounded_tiling(Tiling(8, 7), CellMeans()) == Tiling(8, 4)
    assert rounded_tiling(Tiling(3, 0), CellMeans()) == Tiling(4, 0)
    assert rounded_tiling(Tiling(), CellMeans()) == Tiling()


@pytest.mark.parametrize(("tile", "overlap", "expected"), [(12, 0, 0), (10, 3, 4), (20, 7, 8), (12, 11, 8)])
def test_the_stride_is_not_the_smallest_size(tile, overlap, expected):
    class LargerThanACell(CellMeans):
        """Sizes are multiples of 4, and at least 12, as those of LTX-2 are multiples of 32, and at least 64."""

        def covering_clip(self, num_frames, height, width):
            return super().covering_clip(num_frames, max(height, 12), max(width, 12))

    model, video = LargerThanACell(), random_clip()
    rounded = rounded_tiling(Tiling(tile, overlap), model)
    assert rounded == Tiling(max(tile, 12), expected)
    torch.testing.assert_close(reconstruct_tiled(model, video, rounded), reconstruct_whole(model, video))


def test_tiles_of_one_cell_cannot_overlap():
    message = r"`tile` must be at least 8 for tiles that overlap .* got 4 .*Set it to 8, or `tile_overlap` to 0"
    with pytest.raises(ValueError, match=message):
        rounded_tiling(Tiling(4, 1), CellMeans())
