"""Chunks and tiles: bounded size, aligned with the latent grid, and equal to whole videos where possible."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine.evaluation.tiling import (
    count_chunks,
    crossfade_chunks,
    reconstruct_clip_in_tiles,
    rounded_tiling,
    split_frames,
)
from telecine.models import Reconstruction
from telecine.ops.pass_options import pass_options
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
    chunks = [numbers(chunk) for chunk in split_frames(numbered(total), 4, overlap)]
    assert chunks == expected
    if total:
        assert count_chunks(total, 4, overlap) == len(expected)


@pytest.mark.parametrize("overlap", range(4))
def test_blended_chunks_yield_every_frame_once_with_its_reconstruction(overlap):
    def reconstruct(chunk):
        assert pass_options().clip_position.first_frame == numbers(chunk)[0]
        return chunk.float() + 0.5

    for total in range(1, 15):
        chunks = split_frames(numbered(total), 4, overlap)
        pairs = list(crossfade_chunks(chunks, overlap, reconstruct))
        frames, reconstructions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        assert numbers(frames) == list(range(total))
        torch.testing.assert_close(reconstructions, frames.float() + 0.5)


def test_overlapping_chunks_are_blended_linearly():
    levels = iter([0.0, 1.0])
    chunks = split_frames(numbered(9), 6, 3)
    pairs = crossfade_chunks(chunks, 3, lambda chunk: torch.full(chunk.shape, next(levels)))
    values = torch.cat([reconstruction for _, reconstruction in pairs])[:, 0, 0, 0]
    assert values.tolist() == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.parametrize("overlap", [-1, 4])
def test_an_overlap_as_long_as_the_chunk_raises(overlap):
    with pytest.raises(
        ValueError, match="`overlap_frames` must be at least 0 and below the chunk's 4"
    ):
        list(split_frames(numbered(9), 4, overlap))


class CellMeans(nn.Module):
    """An autoencoder whose receptive field is one 4 x 4 cell: it returns the means of cells. Records input shapes."""

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


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [
        (40, 56, 16, 0),
        (40, 56, 16, 12),
        (41, 55, 16, 4),
        (90, 400, 32, 8),
        (40, 56, 24, 7),
        (3, 70, 8, 4),
    ],
)
def test_tiles_equal_whole_frames_if_the_receptive_field_is_one_cell(height, width, tile, overlap):
    model = CellMeans()
    video = random_clip(6, height, width)
    tiled = reconstruct_clip_in_tiles(model, video, rounded_tiling(Tiling(tile, overlap), model))
    assert set(model.shapes) == {(1, 3, 9, min(tile, 4 * -(-height // 4)), tile)}, "at most a tile"
    torch.testing.assert_close(
        tiled, reconstruct_clip_in_tiles(CellMeans(), video, Tiling()), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("size", [(16, 16), (13, 9), (4, 16)])
def test_a_frame_that_fits_into_one_tile_is_not_tiled(tiny_model, size):
    video = random_clip(4, *size)
    whole = reconstruct_clip_in_tiles(tiny_model, video, Tiling())
    assert torch.equal(reconstruct_clip_in_tiles(tiny_model, video, Tiling(16, 8)), whole)


@pytest.mark.parametrize(
    ("tiling", "rounded"), [((30, 5), (32, 8)), ((8, 7), (8, 4)), ((3, 0), (4, 0)), ((), ())]
)
def test_tiling_is_rounded_for_the_model(tiling, rounded):
    assert rounded_tiling(Tiling(*tiling), CellMeans()) == Tiling(*rounded)


@pytest.mark.parametrize(
    ("tile", "overlap", "expected"), [(12, 0, 0), (10, 3, 4), (20, 7, 8), (12, 11, 8)]
)
def test_the_stride_is_not_the_smallest_size(tile, overlap, expected):
    class LargerThanACell(CellMeans):
        """Sizes are multiples of 4, and at least 12, as those of LTX-2 are multiples of 32, and at least 64."""

        def covering_clip(self, num_frames, height, width):
            return super().covering_clip(num_frames, max(height, 12), max(width, 12))

    model = LargerThanACell()
    rounded = rounded_tiling(Tiling(tile, overlap), model)
    assert rounded == Tiling(max(tile, 12), expected)
    whole = reconstruct_clip_in_tiles(model, random_clip(), Tiling())
    torch.testing.assert_close(reconstruct_clip_in_tiles(model, random_clip(), rounded), whole)


def test_tiles_of_one_cell_cannot_overlap():
    message = r"`tile` must be at least 8 for tiles that overlap .* got 4 .*Set it to 8, or `tile_overlap` to 0"
    with pytest.raises(ValueError, match=message):
        rounded_tiling(Tiling(4, 1), CellMeans())
