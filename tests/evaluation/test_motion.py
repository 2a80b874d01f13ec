"""Flicker of each clip."""

import numpy as np
import pytest
import torch

from telecine.evaluation.motion import flicker


def test_equals_a_loop_for_each_clip():
    generator = torch.Generator().manual_seed(0)
    recon, target = torch.rand(2, 2, 3, 4, 8, 8, generator=generator) * 2 - 1
    expected = []
    for a, b in zip(recon.double().numpy(), target.double().numpy(), strict=True):
        steps = [abs((a[:, t + 1] - a[:, t]) - (b[:, t + 1] - b[:, t])) for t in range(3)]
        expected.append(np.mean(steps))
    assert flicker(reconstruction=recon, target=target).tolist() == pytest.approx(expected, abs=1e-6)


def test_sees_what_changes_from_frame_to_frame_only():
    target = torch.zeros(1, 3, 4, 8, 8)
    alternating = torch.tensor([0.1, -0.1, 0.1, -0.1]).view(1, 1, 4, 1, 1).expand_as(target)
    assert flicker(reconstruction=target + 0.5, target=target).item() == 0
    assert flicker(reconstruction=alternating, target=target).item() == pytest.approx(0.2)


def test_an_image_has_none():
    image = torch.zeros(1, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="at least 2 frames"):
        flicker(reconstruction=image, target=image)
