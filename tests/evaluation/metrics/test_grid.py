"""The grid metric responds to grids of its period only."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from telecine.data import index_video, read_clip, sample_videos, video_from_bytes
from telecine.evaluation.metrics.pixels import GRID_PERIODS, grid_excess

# Maximum value in dB on real frames without a grid. For comparison, half a step of 8 bits is 0.004.
NO_GRID = 1.6


@pytest.fixture(scope="module")
def clips():
    """Return the first frames of three sample videos, `(3, 3, 2, 144, 192)`."""
    frames = [read_clip(index_video(path), 0, 2, size=(144, 192)) for path in sample_videos()[:3]]
    return video_from_bytes(torch.stack(frames))


def grid(video, period, amplitude):
    """Return a sine wave of the period along rows and columns, `video`'s shape."""
    rows = torch.arange(video.shape[-2]) * 2 * np.pi / period
    columns = torch.arange(video.shape[-1]) * 2 * np.pi / period
    return amplitude * (torch.cos(rows)[:, None] + torch.cos(columns)).expand_as(video)


def excesses(recon, target):
    return {
        period: grid_excess(reconstruction=recon, target=target, period=period)
        for period in GRID_PERIODS
    }


@pytest.mark.parametrize("period", GRID_PERIODS)
def test_a_grid_is_detected_at_its_period_only(clips, period):
    """Only the second clip has one."""
    for amplitude, least in ((0.005, 0.2), (0.05, 2 * NO_GRID)):
        changed = clips.clone()
        changed[1] += grid(changed[1], period, amplitude)
        values = excesses(changed, clips)
        added = values.pop(period)
        assert added[1] > least
        assert added[0] == added[2] == 0
        assert all((abs(others) < 0.45).all() for others in values.values())
        assert (excesses(clips, changed)[period][1] < -least).all(), "removed from the target"


def test_sharp_lines_are_detected_at_their_period_and_its_fractions(clips):
    lines = torch.zeros_like(clips)
    lines[..., ::8, :] += 0.1
    lines[..., :, ::8] += 0.1
    values_by_period = excesses(clips + lines, clips)
    assert all((values_by_period[period] > NO_GRID).all() for period in (2, 4, 8)), values_by_period
    assert (abs(values_by_period[16]) < 0.7).all()


def downscaled(video, factor):
    small = F.interpolate(
        video.flatten(0, 1), scale_factor=1 / factor, mode="bilinear", antialias=True
    )
    return F.interpolate(small, scale_factor=factor, mode="bicubic").reshape(video.shape)


NOT_GRIDS = {
    "none": lambda video: video,
    "offset": lambda video: video + 0.1,
    "slopes": lambda video: (
        video + 0.002 * torch.arange(144.0)[:, None] - 0.001 * torch.arange(192.0)
    ),
    "noise": lambda video: (
        video + 0.05 * torch.randn(video.shape, generator=torch.Generator().manual_seed(1))
    ),
    "blur": lambda video: F.avg_pool3d(
        video, (1, 7, 7), stride=1, padding=(0, 3, 3), count_include_pad=False
    ),
    "half the size": lambda video: downscaled(video, 2),
    "a quarter of the size": lambda video: downscaled(video, 4),
    "waves of another period": lambda video: video + grid(video, 10.4, 0.02),
}
LIMITS = {"none": 1e-4, "offset": 0.01, "slopes": 0.01}


@pytest.mark.parametrize("change", NOT_GRIDS)
def test_other_changes_are_not_detected(clips, change):
    for values in excesses(NOT_GRIDS[change](clips), clips).values():
        assert (values < LIMITS.get(change, NO_GRID)).all()
        if change in LIMITS:
            assert (values > -LIMITS[change]).all()


def test_flat_clips_score_0():
    flat = torch.zeros(1, 3, 1, 32, 32)
    assert {
        period: value.item() for period, value in excesses(flat, flat).items()
    } == dict.fromkeys(GRID_PERIODS, 0.0)


def test_equals_numpy_on_one_patch():
    generator = torch.Generator().manual_seed(0)
    recon, target = torch.rand(2, 1, 3, 1, 32, 32, generator=generator) - 0.5

    def prominence(video):
        grey = video[0].double().numpy().mean(0)[0]
        size = np.arange(32)
        plane = (
            np.stack([np.ones((32, 32)), np.tile(size[:, None], 32), np.tile(size, (32, 1))])
            .reshape(3, -1)
            .T
        )
        grey = grey - (plane @ np.linalg.lstsq(plane, grey.ravel(), rcond=None)[0]).reshape(32, 32)
        rows = (abs(np.fft.fft(grey, axis=1)) ** 2).mean(0) / 32
        columns = (abs(np.fft.fft(grey, axis=0)) ** 2).mean(1) / 32
        power = (rows + columns) / 2 + (2 / 255) ** 2 / 12
        return power[4] / np.sqrt(power[3] * power[5])

    value = grid_excess(reconstruction=recon, target=target, period=8).item()
    assert value == pytest.approx(10 * np.log10(prominence(recon) / prominence(target)), abs=1e-3)


def test_the_flattest_quarter_of_the_patches_is_measured(clips):
    """Of 2 frames of 4 x 6 patches, 12 are. A grid in the others changes nothing."""
    clip = clips[:1, :, :, :128, :192]
    patches = clip[0].mean(0).unfold(1, 32, 32).unfold(2, 32, 32)
    variance = patches.var(dim=(3, 4))
    is_flat = variance <= variance.flatten().sort().values[11]
    is_measured = is_flat.repeat_interleave(32, 1).repeat_interleave(32, 2)
    with_grid = clip + grid(clip, 8, 0.05)
    assert (excesses(torch.where(is_measured, clip, with_grid), clip)[8]).item() == 0
    assert excesses(torch.where(is_measured, with_grid, clip), clip)[8].item() > NO_GRID
