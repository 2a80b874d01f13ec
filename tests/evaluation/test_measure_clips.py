"""The results of clips, and the figures of the whole set."""

from dataclasses import replace

import pytest
import torch

from telecine.evaluation.measure_clips import ClipResult, mean_per_frame, stack_features


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
            per_pass={},
            features=(torch.randn(dim, generator=generator), torch.randn(dim, generator=generator)),
        )
        for index in range(count)
    ]


def test_values_per_frame_are_means_over_clips():
    assert mean_per_frame(results(3)) == {"psnr": pytest.approx([1.0, 2.0])}


def test_a_position_that_some_clips_lack_is_the_mean_over_the_others():
    shorter = replace(results(1)[0], per_frame={"psnr": [4.0]})
    assert mean_per_frame([shorter, *results(1)]) == {"psnr": pytest.approx([2.0, 2.0])}


def test_features_of_all_clips_are_stacked_in_order():
    features, reference = stack_features(results(3))
    assert features.shape == reference.shape == (3, 3)
    assert torch.equal(features[2], results(3)[2].features[0])
    assert torch.equal(reference[2], results(3)[2].features[1])
