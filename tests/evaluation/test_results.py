"""The figures of a whole set from those of its clips."""

import pytest
import torch

from telecine.evaluation.results import ClipResult, hash_of_clips, mean_curves, set_distance


class Network:
    """Stands for a network of three features."""

    name, definition, source, min_frames = "fvd", "a definition", "a file", 2


def results(count, dim=3):
    generator = torch.Generator().manual_seed(0)
    return [
        ClipResult(
            index=index,
            source="clip.mp4",
            start=index,
            values={"psnr": float(index)},
            curves={"psnr": [float(index), 2.0]},
            sha256=str(index),
            features=(torch.randn(dim, generator=generator), torch.randn(dim, generator=generator)),
        )
        for index in range(count)
    ]


def test_a_set_that_is_large_enough_has_a_distance():
    distance, absent = set_distance(results(4), Network())
    assert absent == {}
    assert distance["fvd"] > 0


def test_one_that_is_not_has_a_reason():
    distance, absent = set_distance(results(3), Network())
    assert distance == {}
    assert absent == {"fvd": "needs at least 4 clips, not 3: with fewer, the covariance of its 3 features is singular"}


def test_features_that_are_not_finite_have_a_reason():
    broken = results(4)
    broken[2].features[0][1] = float("nan")
    distance, absent = set_distance(broken, Network())
    assert distance == {}
    assert absent["fvd"].startswith("its features are not finite")


def test_curves_are_means_over_clips():
    assert mean_curves(results(3)) == {"psnr": pytest.approx([1.0, 2.0])}


def test_the_hash_knows_every_clip_and_their_order():
    hashes = {hash_of_clips(chosen) for chosen in (results(3), results(2), results(3)[::-1])}
    assert len(hashes) == 3
    assert hash_of_clips(results(3)) in hashes


def test_a_row_of_the_clips_file():
    assert results(2)[1].as_row() == {"source": "clip.mp4", "start": 1, "psnr": 1.0}
