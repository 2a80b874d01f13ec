"""Save and load a model in a folder: `config.json` and `model.safetensors`, each written atomically."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from telecine.base.checks import argument_error, nearest, shorten
from telecine.base.devices import in_gib, machine_memory
from telecine.base.files import atomic_write, read_json, write_json
from telecine.base.imports import CODE_ERRORS
from telecine.base.safetensors_files import load_safetensors
from telecine.models.unwrapping import unwrapped

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CLASS_KEY = "_class_name"
_WEIGHTS_SUFFIXES = (".safetensors", ".bin")
# Functions by which layers create their weights.
_FACTORIES = (torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros)
# Zeros of at most this many values stay real: positional embeddings are computed with them.
_SMALL = 2**12
# More tensors than any autoencoder has; they are built in seconds.
MAX_TENSORS = 2**14
# Modules that turn a latent into video; all others of an autoencoder compute the latent.
DECODER = ("decoder", "post_quant_conv")
MAX_LISTED = 3
"""How many missing or mismatched weights an error lists."""


def save_model(model: nn.Module, config: Mapping[str, object], folder: str | PathLike[str]) -> None:
    """Write a model's weights, then its configuration with the class name.

    Args:
        model: The model.
        config: Values of the configuration, as JSON has them.
        folder: It is created if needed.

    Raises:
        OSError: The weights cannot be written.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.contiguous()
        for name, tensor in without_shared_memory(model.state_dict()).items()
    }
    with safetensors_write(path):
        atomic_write(
            path / WEIGHTS_FILE,
            lambda partial: save_file(weights, partial, metadata={"format": "pt"}),
        )
    write_json(path / CONFIG_FILE, {CLASS_KEY: type(model).__name__, **config})


@contextmanager
def safetensors_write(path: Path) -> Iterator[None]:
    """Turn a `SafetensorError` into an `OSError`.

    Raises:
        OSError: The weights cannot be written, for example because the disk is full.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"cannot write weights to {path}: {error}") from error


def without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a copy for each that shares memory, as tied weights do: safetensors refuses these."""
    separate: dict[str, Tensor] = {}
    pointers: set[int] = set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.detach()
        if pointer in pointers:
            separate[name] = tensor.detach().clone()
        pointers.add(pointer)
    return separate


def load_config(
    folder: str | PathLike[str], class_name: str, known: Iterable[str]
) -> dict[str, Any]:
    """Return a folder's configuration without the class name.

    Args:
        folder: The folder.
        class_name: The class that has to have written it.
        known: The keys that it may have.

    Raises:
        FileNotFoundError: There is none.
        ValueError: Another class has written it, or a key is unknown.
    """
    config = read_json(_require_file(Path(folder) / CONFIG_FILE))
    written_by = config.pop(CLASS_KEY, None)
    if written_by != class_name:
        remedy = "Load it with the class that wrote it."
        raise argument_error(
            "folder", f"a {class_name}'s", f"one whose `{CLASS_KEY}` is {written_by!r}", remedy
        )
    check_known_keys(config, sorted(known))
    return config


def load_weights(model: nn.Module, folder: str | PathLike[str]) -> None:
    """Copy a folder's weights into `model`, from `WEIGHTS_FILE` or the only safetensors file.

    Raises:
        FileNotFoundError: There are none.
        ValueError: They are damaged, or are not the model's.
    """
    path = Path(folder) / WEIGHTS_FILE
    files = list(Path(folder).glob("*.safetensors"))
    if not path.is_file() and len(files) == 1:
        path = files[0]
    try:
        weights = load_safetensors(_require_file(path))
    except SafetensorError as error:
        raise argument_error(
            str(path), "a safetensors file", f"a damaged one ({error})", "Copy it again."
        ) from error
    copy_state(weights, into=model, source=str(path))


class _WithoutMemory(TorchFunctionMode):
    """Creates weights on the meta device. Values that sizes are computed from, e.g. of `torch.tensor`, stay real."""

    num_tensors = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func not in _FACTORIES:
            return func(*args, **options)
        self.num_tensors += 1
        if self.num_tensors > MAX_TENSORS:
            raise ValueError(f"more than {MAX_TENSORS} tensors")
        without_memory = func(*args, **(options | {"device": "meta"}))
        if func is torch.zeros and without_memory.numel() <= _SMALL:
            return func(*args, **options)
        return without_memory


def check_num_weights(
    build: Callable[[], nn.Module], source: str, folder: str | PathLike[str] | None = None
) -> None:
    """Check that a model has no more weights than its folder has bytes, and than fit into memory.

    It is built without memory and random numbers, since configurations come from others, too.

    Args:
        build: Builds the model.
        source: Where its configuration is from, for errors.
        folder: That of its weights, if there are any.

    Raises:
        ValueError: It has more, or cannot be built.
    """
    try:
        with unset_fake_temporarily(), torch.random.fork_rng(devices=[]), _WithoutMemory():
            num_weights = sum(weight.numel() for weight in build().parameters())
    except CODE_ERRORS as error:
        got = f"one for which it raises {type(error).__name__}: {shorten(str(error))}"
        raise argument_error(
            source, "a configuration that its class builds", got, "Correct it."
        ) from error
    files: list[Path] = []
    if folder is not None:
        files = [path for path in Path(folder).glob("*") if path.suffix in _WEIGHTS_SUFFIXES]
    size = sum(path.stat().st_size for path in files)
    memory = machine_memory()
    if files and num_weights > size:
        got = f"one of {num_weights} weights, with files of {size} bytes"
        raise argument_error(
            source, "a configuration that its weights belong to", got, "Copy it again."
        )
    if 4 * num_weights > memory:
        contract = f"one whose weights fit into the {in_gib(memory)} of this machine"
        raise argument_error(
            source, contract, f"one with {num_weights} weights", "Use a smaller one."
        )


def copy_state(weights: Mapping[str, Tensor], *, into: nn.Module, source: str) -> None:
    """Copy a state dict into a model.

    Args:
        weights: The state dict.
        into: The model.
        source: Where the weights are from, for errors.

    Raises:
        ValueError: Names or shapes differ; the message has the first few.
    """
    remedy = "Use the configuration that they were saved with, and load them before adding LoRA adapters."
    check_tensors(
        into.state_dict(), weights, name=source, contract="the model's weights", remedy=remedy
    )
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
    state = unwrapped(autoencoder).state_dict()
    of_encoder = {
        name: tensor for name, tensor in state.items() if name.split(".")[0] not in DECODER
    }
    return digest_of_tensors(of_encoder.items())


def digest_of_decoder(autoencoder: nn.Module) -> str:
    """Return a digest of the weights and buffers that decide what an autoencoder makes of a latent."""
    state = unwrapped(autoencoder).state_dict()
    of_decoder = {name: tensor for name, tensor in state.items() if name.split(".")[0] in DECODER}
    return digest_of_tensors(of_decoder.items())


def mismatches(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a description of each tensor that is missing, unexpected or of another shape."""
    missing = [f"no {name}" for name in expected if name not in tensors]
    unexpected = [f"an unexpected {name}" for name in tensors if name not in expected]
    other_shapes = []
    for name in expected:
        if name in tensors and tensors[name].shape != expected[name].shape:
            shape = tuple(tensors[name].shape)
            other_shapes.append(f"{name} of shape {shape} instead of {tuple(expected[name].shape)}")
    return missing + unexpected + other_shapes


def check_tensors(
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    *,
    name: str,
    contract: str,
    remedy: str,
) -> None:
    """Check that tensors have the names and shapes of expected ones.

    Args:
        expected: The expected ones.
        tensors: The tensors.
        name: What they are, for the error, as the next two.
        contract: What they must be.
        remedy: What to do.

    Raises:
        ValueError: Some differ; the message has the first few of them.
    """
    problems = mismatches(expected, tensors)
    if problems:
        got = "; ".join(problems[:MAX_LISTED])
        if len(problems) > MAX_LISTED:
            got += f" and {len(problems) - MAX_LISTED} more"
        raise argument_error(name, contract, got, remedy)


def check_known_keys(config: Mapping[str, object], known: list[str]) -> None:
    """Check that a configuration has no unknown key.

    Raises:
        ValueError: It has; the message has the nearest known key.
    """
    for key in config:
        if key not in known:
            remedy = nearest(key, known) or "Remove it."
            raise argument_error(key, f"one of {', '.join(known)}", "an unknown key", remedy)


def _require_file(path: Path) -> Path:
    if not path.is_file():
        contract = f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        got = f"{str(path.parent)!r} without {path.name}"
        raise argument_error("folder", contract, got, "Check the path.", FileNotFoundError)
    return path
