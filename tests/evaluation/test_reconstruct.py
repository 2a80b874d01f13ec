"""Whole videos through an autoencoder: length, size, bounds, and what overlaps do."""

import pytest
import torch

from telecine.data import index_video, iterate_frames
from telecine.evaluation.model import load_model
from telecine.evaluation.reconstruct import ReconstructConfig, reconstruct, reconstructed

CPU = torch.device("cpu")


class Watched(torch.nn.Module):
    """Passes everything on and remembers the shapes that went through."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []
        self.covering_clip = model.covering_clip

    def forward(self, video, sample_posterior=True):
        self.seen.append(tuple(video.shape))
        return self.model(video, sample_posterior=sample_posterior)


def run(model, info, **settings):
    pairs = list(reconstructed(model, info, ReconstructConfig(**settings), CPU))
    return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))


@pytest.mark.parametrize("overlap_frames", [0, 2])
@pytest.mark.parametrize("tile", [None, 32])
def test_every_frame_is_reconstructed_in_bounded_calls(tiny_model, videos, tile, overlap_frames):
    info = index_video(videos / "one.mp4")
    model = Watched(tiny_model)
    settings = {"num_frames": 5, "tile": tile, "tile_overlap": 8, "overlap_frames": overlap_frames}
    frames, reconstruction = run(model, info, **settings)
    assert torch.equal(frames, torch.stack(list(iterate_frames(info.path))))
    assert reconstruction.shape == (26, 3, 48, 64)
    assert reconstruction.abs().max() <= 1
    largest = (1, 3, 5, 48, 64) if tile is None else (1, 3, 5, 32, 32)
    assert max(model.seen) == largest
    whole = Watched(tiny_model)
    _, larger = run(whole, info, **settings, height=96, width=128)
    assert larger.shape == (26, 3, 96, 128)
    if tile is not None:
        assert max(whole.seen) == largest


def test_tiles_that_cover_all_and_no_overlap_change_nothing(tiny_model, videos):
    info = index_video(videos / "one.mp4")
    _, plain = run(tiny_model, info, num_frames=9)
    _, tiled = run(tiny_model, info, num_frames=9, tile=64)
    assert torch.equal(plain, tiled)


def test_chunks_that_overlap_begin_as_those_that_do_not(tiny_model, videos):
    info = index_video(videos / "one.mp4")
    _, plain = run(tiny_model, info, num_frames=9)
    _, faded = run(tiny_model, info, num_frames=9, overlap_frames=2)
    assert torch.equal(plain[:7], faded[:7])
    assert not torch.equal(plain[7:], faded[7:])


def test_writes_a_video_and_returns_its_psnr(model_folder, videos, tmp_path):
    out = tmp_path / "out.mp4"
    config = ReconstructConfig(num_frames=9, tile=32, tile_overlap=8, overlap_frames=2, device="cpu")
    psnr = reconstruct(model_folder, videos / "one.mp4", out, config)
    info = index_video(out)
    assert (info.num_frames, info.height, info.width, info.fps) == (26, 48, 64, 25)
    frames, reconstruction = run(load_model(model_folder, "ema", CPU), index_video(videos / "one.mp4"), **vars(config))
    target = frames.movedim(-1, 1).double() / 127.5 - 1
    error = (reconstruction.double() - target).square().mean((1, 2, 3))
    assert psnr == pytest.approx((10 * torch.log10(4 / error)).mean().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 0}, "`tile` must be at least 1"),
        ({"tile": 32, "tile_overlap": 32}, "below the tile's 32 pixels"),
        ({"overlap_frames": 17}, "below the chunk's 17 frames"),
        ({"overlap_frames": -1}, "`overlap_frames` must be at least 0"),
        ({"height": 0}, "`height` must be at least 1"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        ReconstructConfig(**settings)
