"""The results of clips, and the figures of the whole set."""

from dataclasses import replace

import pytest
import torch

from telecine.evaluation.measure import ClipResult, frechet_of_clips, mean_per_frame


class FakeNetwork:
    """A network of three features."""

    name, definition, source, min_frames = "fvd", "a definition", "a file", 2


def results(count, dim=3):
    generator = torch.Generator().manual_seed(0)
    return [
        ClipResult(
            index=index,
            source="clip.mp4",
            start=index,
            metrics={"psnr": float(index)},
            per_frame={"psnr": [float(index), 2.0]},
            sha256=str(index),
            features=(torch.randn(dim, generator=generator), torch.randn(dim, generator=generator)),
        )
        for index in range(count)
    ]


def test_the_frechet_distance_of_enough_clips():
    distance, absent = frechet_of_clips(results(4), FakeNetwork())
    assert absent == {}
    assert distance["fvd"] > 0


def test_too_few_clips_have_no_frechet_distance():
    distance, absent = frechet_of_clips(results(3), FakeNetwork())
    assert distance == {}
    assert absent == {"fvd": "needs at least 4 clips, not 3: with fewer, the covariance is singular"}


def test_features_that_are_not_finite_have_no_frechet_distance():
    broken = results(4)
    broken[2].features[0][1] = float("nan")
    distance, absent = frechet_of_clips(broken, FakeNetwork())
    assert distance == {}
    assert absent["fvd"].startswith("its features are not finite")


def test_values_per_frame_are_means_over_clips():
    assert mean_per_frame(results(3)) == {"psnr": pytest.approx([1.0, 2.0])}


def test_a_position_that_some_clips_lack_is_the_mean_over_the_others():
    shorter = replace(results(1)[0], per_frame={"psnr": [4.0]})
    assert mean_per_frame([shorter, *results(1)]) == {"psnr": pytest.approx([2.0, 2.0])}
