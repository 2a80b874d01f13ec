"""Settings of evaluations and reconstructions."""

from pathlib import Path

import pytest

from telecine.settings import ClipConfig, EvaluateConfig, LatentsConfig, ReconstructConfig


def test_the_home_folder_is_expanded():
    config = EvaluateConfig(data="~/videos", features="~/i3d.pt")
    assert (config.data, config.features) == (
        str(Path.home() / "videos"),
        str(Path.home() / "i3d.pt"),
    )
    assert EvaluateConfig(features="transnetv2").features == "transnetv2"


@pytest.mark.parametrize(
    "config", [EvaluateConfig(height=256, width=448), LatentsConfig(height=256, width=448)]
)
def test_a_model_that_was_trained_on_square_clips_in_all_orientations_is_measured_at_any_size(
    config,
):
    clips = config.clip_config(ClipConfig(height=128, width=128, random_orientation=True))
    assert (clips.height, clips.width, clips.random_orientation) == (256, 448, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 0}, "`tile` must be a positive int"),
        (
            {"tile": 32, "tile_overlap": 32},
            "`tile_overlap` must be at least 0 and below the tile's 32 pixels",
        ),
        ({"tile": 32, "tile_overlap": -1}, "`tile_overlap` must be at least 0"),
        ({"tile_overlap": 8}, "`tile_overlap` must be left out without `tile`, but got 8"),
        (
            {"overlap_frames": 17},
            "`overlap_frames` must be at least 0 and below the chunk's 17 frames",
        ),
        ({"overlap_frames": -1}, "`overlap_frames` must be at least 0"),
        ({"height": 0}, "`height` must be at least 1"),
    ],
)
def test_invalid_reconstruction_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        ReconstructConfig(**settings)


def test_a_stride_replaces_the_rate_of_the_run_and_a_rate_its_stride():
    by_stride = EvaluateConfig(stride=2).clip_config(ClipConfig(fps=12))
    assert (by_stride.stride, by_stride.fps) == (2, None)
    by_rate = EvaluateConfig(fps=12).clip_config(ClipConfig(stride=2))
    assert (by_rate.stride, by_rate.fps) == (1, 12)
