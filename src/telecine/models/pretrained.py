"""Save and load a model in a folder: `config.json` and `model.safetensors`, each written atomically."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from telecine.base.checks import argument_error, nearest, shorten
from telecine.base.devices import gigabytes, machine_memory
from telecine.base.files import atomic_write, read_json, write_json
from telecine.base.imports import CODE_ERRORS

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CLASS_KEY = "_class_name"
_WEIGHTS_SUFFIXES = (".safetensors", ".bin")
# Functions by which layers create their weights.
_FACTORIES = (torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros)
# Zeros of at most this many values stay real: positional embeddings are computed with them.
_SMALL = 2**12
# More tensors than any autoencoder has; they are built in seconds.
_MAX_TENSORS = 2**14
# Modules that turn a latent into video; all others of an autoencoder compute the latent.
DECODER = ("decoder", "post_quant_conv")
# How many missing or mismatched weights an error lists.
MAX_LISTED = 3


def save_model(model: nn.Module, config: Mapping[str, object], folder: str | PathLike[str]) -> None:
    """Write a model's weights, then its configuration with the class name, into a folder, made if needed."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in without_shared_memory(model.state_dict()).items()}
    with safetensors_write(path):
        atomic_write(path / WEIGHTS_FILE, lambda partial: save_file(weights, partial, metadata={"format": "pt"}))
    write_json(path / CONFIG_FILE, {CLASS_KEY: type(model).__name__, **config})


@contextmanager
def safetensors_write(path: Path) -> Iterator[None]:
    """Turn a `SafetensorError`, e.g. of a full disk, into an `OSError`."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"cannot write weights to {path}: {error}") from error


def without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a copy for each that shares memory, as tied weights do: safetensors refuses these."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        found[name] = tensor.detach().clone() if pointer in seen else tensor.detach()
        seen.add(pointer)
    return found


def load_config(folder: str | PathLike[str], class_name: str, known: Iterable[str]) -> dict[str, Any]:
    """Return a folder's configuration without the class name; raise an error for another class, or an unknown key."""
    config = read_json(_require_file(Path(folder) / CONFIG_FILE))
    if (written_by := config.pop(CLASS_KEY, None)) != class_name:
        remedy = "Load it with the class that wrote it."
        raise argument_error("folder", f"a {class_name}'s", f"one whose `{CLASS_KEY}` is {written_by!r}", remedy)
    check_known_keys(config, sorted(known))
    return config


def load_weights(model: nn.Module, folder: str | PathLike[str]) -> None:
    """Copy a folder's weights into `model`: those of `WEIGHTS_FILE`, or of the only safetensors file."""
    path, others = Path(folder) / WEIGHTS_FILE, [*Path(folder).glob("*.safetensors")]
    path = _require_file(path if path.is_file() or len(others) != 1 else others[0])
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise argument_error(str(path), "a safetensors file", f"a damaged one ({error})", "Copy it again.") from error
    copy_state(weights, into=model, source=str(path))


class _WithoutMemory(TorchFunctionMode):
    """Creates weights on the meta device. Values that sizes are computed from, e.g. of `torch.tensor`, stay real."""

    num_tensors = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _FACTORIES:
            return func(*args, **(kwargs or {}))
        self.num_tensors += 1
        if self.num_tensors > _MAX_TENSORS:
            raise ValueError(f"more than {_MAX_TENSORS} tensors")
        made = func(*args, **{**(kwargs or {}), "device": "meta"})
        return func(*args, **(kwargs or {})) if func is torch.zeros and made.numel() <= _SMALL else made


def check_num_weights(build: Callable[[], nn.Module], source: str, folder: str | PathLike[str] | None = None) -> None:
    """Raise a `ValueError` if `build()` has more weights than `folder` has bytes, or than fit into memory.

    It is built without memory and random numbers: `source`, its configuration, may be of others.
    """
    try:
        with torch.random.fork_rng(devices=[]), _WithoutMemory():
            num_weights = sum(weight.numel() for weight in build().parameters())
    except CODE_ERRORS as error:
        got = f"one for which it raises {type(error).__name__}: {shorten(str(error))}"
        raise argument_error(source, "a configuration that its class builds", got, "Correct it.") from error
    files = [] if folder is None else [path for path in Path(folder).glob("*") if path.suffix in _WEIGHTS_SUFFIXES]
    size, memory = sum(path.stat().st_size for path in files), machine_memory()
    if files and num_weights > size:
        got = f"one of {num_weights} weights, with files of {size} bytes"
        raise argument_error(source, "a configuration that its weights belong to", got, "Copy it again.")
    if 4 * num_weights > memory:
        contract = f"one whose weights fit into the {gigabytes(memory)} of this machine"
        raise argument_error(source, contract, f"one with {num_weights} weights", "Use a smaller one.")


def copy_state(weights: Mapping[str, Tensor], *, into: nn.Module, source: str) -> None:
    """Copy a state dict into a model, or raise a `ValueError` that names `source` and the first few mismatches."""
    remedy = "Use the configuration that they were saved with, and load them before adding low-rank updates."
    check_tensors(into.state_dict(), weights, name=source, contract="the model's weights", remedy=remedy)
    into.load_state_dict(weights)


def digest_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of names and values."""
    digest = sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_encoder(autoencoder: nn.Module) -> str:
    """Return a digest of the weights and buffers that decide the latent of an autoencoder."""
    state = getattr(autoencoder, "module", autoencoder).state_dict()
    return digest_of_tensors((name, state[name]) for name in state if name.split(".")[0] not in DECODER)


def mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return a description of each tensor that is missing, unexpected or of another shape."""
    missing = [f"no {name}" for name in expected if name not in found]
    unexpected = [f"an unexpected {name}" for name in found if name not in expected]
    shapes = {name: (tuple(found[name].shape), tuple(expected[name].shape)) for name in expected if name in found}
    return missing + unexpected + [f"{name} of shape {a} instead of {b}" for name, (a, b) in shapes.items() if a != b]


def check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, name: str, contract: str, remedy: str
) -> None:
    """Raise a `ValueError` with the first few `mismatches`, if there are any."""
    if problems := mismatches(expected, found):
        more = f" and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise argument_error(name, contract, "; ".join(problems[:MAX_LISTED]) + more, remedy)


def check_known_keys(config: Mapping[str, object], known: list[str]) -> None:
    """Raise a `ValueError` with the nearest known key for the first unknown key of `config`."""
    for key in config:
        if key not in known:
            remedy = nearest(key, known) or "Remove it."
            raise argument_error(key, f"one of {', '.join(known)}", "an unknown key", remedy)


def _require_file(path: Path) -> Path:
    if not path.is_file():
        contract, got = f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}", f"{str(path.parent)!r} without {path.name}"
        raise argument_error("folder", contract, got, "Check the path.", FileNotFoundError)
    return path
