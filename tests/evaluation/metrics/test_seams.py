"""Reconstruction in chunks and tiles against whole clips: known values, and where the seams are."""

import pytest
import torch
from torch import nn

from telecine.evaluation.evaluate import evaluate
from telecine.evaluation.metrics.seams import TilingDifference, seams
from telecine.models import Reconstruction
from telecine.settings import EvaluateConfig, Tiling

WHOLE_FRAMES = Tiling()


class Fake(nn.Module):
    """An autoencoder that is the identity, plus an error on the first frames and columns of what it gets."""

    streams = False

    def __init__(self, frame_error=0.0, column_error=0.0):
        super().__init__()
        self.frame_error = frame_error
        self.column_error = column_error

    def forward(self, video, sample_posterior=True, *, generator=None):
        assert not sample_posterior
        video = video.clone()
        video[:, :, 0] += self.frame_error
        video[..., 0] += self.column_error
        return Reconstruction(video, {})

    def covering_clip(self, num_frames, height, width):
        return num_frames, *(4 * -(-side // 4) for side in (height, width))


def measured(model, chunk=None, overlap=0, tiling=WHOLE_FRAMES, size=(6, 16, 24)):
    clip = torch.zeros(1, 3, *size)
    measure = TilingDifference(model, chunk, overlap, tiling)
    return measure(reconstruction=clip, target=clip).values


def test_tiles_that_do_not_depend_on_their_edges_are_the_whole():
    assert measured(Fake(), chunk=2, tiling=Tiling(8, 4)) == {"pieces_psnr": 100, "seam_psnr": 100}


def test_an_error_on_the_first_frame_of_a_chunk():
    """Of 6 frames, those at 2 and 4 begin a chunk: the mean squared error is 0.2^2 on them, and 0 on the others."""
    values = measured(Fake(frame_error=0.2), chunk=2)
    assert values["seam_psnr"] == pytest.approx(20, abs=1e-4)
    assert values["pieces_psnr"] == pytest.approx(
        20 + 10 * torch.tensor(3.0).log10().item(), abs=1e-4
    )


def test_an_overlap_blends_it():
    """Two chunks of 4 frames share frames 2 and 3: the second one's error counts a third on frame 2."""
    values = measured(Fake(frame_error=0.3), chunk=4, overlap=2)
    assert values["seam_psnr"] == pytest.approx(
        20 + 10 * torch.tensor(4.0).log10().item(), abs=1e-4
    )


def test_an_error_on_the_first_column_of_a_tile():
    """Tiles begin in columns 8 and 16 of 24: half of the pixels at seams have an error of 0.2."""
    values = measured(Fake(column_error=0.2), tiling=Tiling(8, 0), size=(2, 8, 24))
    assert values["seam_psnr"] == pytest.approx(
        20 + 10 * torch.tensor(2.0).log10().item(), abs=1e-4
    )
    assert values["pieces_psnr"] == pytest.approx(
        20 + 10 * torch.tensor(12.0).log10().item(), abs=1e-4
    )


@pytest.mark.parametrize(
    ("starts", "size", "expected"),
    [([0], 8, []), ([0, 4], 4, [3, 4]), ([0, 3], 5, [3, 4]), ([0, 4, 7], 4, [3, 4, 7])],
)
def test_seams(starts, size, expected):
    assert seams(starts, size, 8).nonzero()[:, 0].tolist() == expected


def test_a_clip_that_fits_into_one_tile_raises():
    with pytest.raises(
        ValueError,
        match="`chunk` must be smaller than the clips of 6 x 16 x 24, or `tile`, but got chun",
    ):
        measured(Fake(), chunk=6)


def test_every_model_is_measured(model_folder, videos):
    settings = {
        "data": str(videos),
        "num_frames": 9,
        "height": 12,
        "width": 12,
        "max_clips": 1,
        "device": "cpu",
    }
    evaluation = evaluate(model_folder, EvaluateConfig(**settings, chunk=5, tile=8, tile_overlap=4))
    assert 0 < evaluation.metrics["seam_psnr"] <= evaluation.metrics["pieces_psnr"] <= 100
    described = evaluation.protocol.backbones["seam_psnr"]
    assert described == "chunks of 5 frames, 0 shared; tiles of 8 pixels, 4 shared"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 0}, "`chunk` must be at least 1"),
        (
            {"chunk": 4, "overlap_frames": 4},
            "`overlap_frames` must be at least 0 and below the chunk's 4 frames",
        ),
        ({"overlap_frames": 4}, "`overlap_frames` must be left out without `chunk`, but got 4"),
        ({"tile_overlap": 4}, "`tile_overlap` must be left out without `tile`, but got 4"),
        ({"tile": 0}, "`tile` must be a positive int"),
        (
            {"tile": 8, "tile_overlap": 8},
            "`tile_overlap` must be at least 0 and below the tile's 8 pixels",
        ),
    ],
)
def test_invalid_chunks_and_tiles_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**settings)
