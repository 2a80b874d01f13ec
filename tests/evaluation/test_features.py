"""The I3D by path, with a scripted stand-in of its signature."""

import hashlib
import math

import pytest
import torch
from torch.nn import functional as F

from telecine.evaluation.features import I3DFeatures, center_square, load_features

CPU = torch.device("cpu")


def test_calls_the_network_as_published_ones_are_called(stand_in):
    network = load_features(str(stand_in), CPU)
    video = torch.rand(2, 3, 10, 32, 32) * 2 - 1
    expected = torch.cat([video[:, :, 0].mean((2, 3)), video[:, 2, -1].mean((1, 2))[:, None]], dim=1)
    features = network(video)
    torch.testing.assert_close(features, expected, atol=2e-3, rtol=0)
    assert not features.requires_grad
    assert (network.name, network.min_frames) == ("fvd", 10)
    assert network.source == f"stand_in.pt, sha256 {hashlib.sha256(stand_in.read_bytes()).hexdigest()}"


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64), (64, 48), (300, 224), (225, 500), (7, 224)])
def test_the_shorter_side_is_resized_and_the_centre_kept(height, width):
    video = torch.rand(1, 3, 2, height, width)
    square = center_square(video, 224)
    assert square.shape == (1, 3, 2, 224, 224)
    scale = 224 / min(height, width)
    size = [math.ceil(round(side * scale, 6)) for side in (height, width)]
    expected = F.interpolate(video[0].transpose(0, 1), size, mode="bilinear", align_corners=False)
    top, left = ((side - 224) // 2 for side in size)
    torch.testing.assert_close(square[0], expected[:, :, top : top + 224, left : left + 224].transpose(0, 1))


def test_a_file_that_is_missing_or_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"which does not exist\. Give the path of"):
        load_features(str(tmp_path / "nowhere.pt"), CPU)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match=r"must be a TorchScript file, but got .*text\.pt, which cannot be loaded"):
        I3DFeatures(tmp_path / "text.pt", CPU)
