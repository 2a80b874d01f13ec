"""The results of clips, and the figures of the whole set."""

import pytest
import torch

from telecine.evaluation.measure_clips import ClipResult, mean_per_frame, stack_features


def result(index, *psnr):
    features = torch.full((3,), float(index))
    return ClipResult(
        index=index,
        source="clip.mp4",
        start=index,
        metrics={"psnr": psnr[0]},
        per_frame={"psnr": list(psnr)},
        sha256=str(index),
        per_pass={},
        feature_pair=(features, -features),
    )


def test_values_of_a_frame_are_means_over_the_clips_that_have_it():
    results = [result(0, 4.0), result(1, 0.0, 2.0)]
    assert mean_per_frame(results) == {"psnr": pytest.approx([2.0, 2.0])}


def test_features_of_all_clips_are_stacked_in_order():
    features, reference = stack_features([result(0, 1.0), result(1, 1.0)])
    assert features.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert torch.equal(reference, -features)
