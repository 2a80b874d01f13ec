"""The relative gradient of each frame."""

import pytest
import torch

from telecine.discriminators import Discriminator3DWithfirstframe, PatchDiscriminator3D

from .small_networks import frame_gradients


def first_to_others(make, time, seeds=3):
    """Return the first frame's value divided by the mean of the others, averaged over networks."""
    total = 0.0
    for seed in range(seeds):
        torch.manual_seed(seed)
        relative = frame_gradients(make(), torch.randn(1, 3, time, 32, 32))
        total += (relative[0] / relative[1:].mean()).item()
    return total / seeds


@pytest.mark.slow
def test_the_first_frame_as_published_and_with_both_options():
    """As published, the first frame alone is one of two positions and has over ten times the gradient (17 frames)."""
    ratios = [
        first_to_others(
            lambda options=options: Discriminator3DWithfirstframe(
                dim=4, image_size=64, frame_num=17, **options
            ),
            time=17,
        )
        for options in (
            {},
            {"time_weighting": "frames"},
            {"time_weighting": "frames", "pad_mode": "constant"},
        )
    ]
    assert ratios[0] > 10
    assert 2 < ratios[1] < 4
    assert 1 < ratios[2] < 2


def test_patches_weigh_the_first_frame_almost_equally():
    assert 0.4 < first_to_others(lambda: PatchDiscriminator3D(base_channels=4), time=17) < 1
