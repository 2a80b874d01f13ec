"""A model in a folder: `config.json` and `model.safetensors`, each written aside and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from telecine.files import read_json, write_aside
from telecine.shapes import argument_error, nearest

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CLASS_KEY = "_class_name"
NUM_NAMED = 3


def save_model(model: nn.Module, config: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write a model's weights, then its configuration with the class's name, into `folder`, which is made if needed.

    Raises:
        OSError: they cannot be written.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in apart(model.state_dict()).items()}
    text = json.dumps({CLASS_KEY: type(model).__name__, **config}, indent=2) + "\n"
    with writing_weights(place):
        write_aside(place / WEIGHTS_FILE, lambda path: save_file(weights, path, metadata={"format": "pt"}))
    write_aside(place / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


@contextmanager
def writing_weights(place: Path) -> Iterator[None]:
    """Raise an `OSError` where safetensors cannot write, as on a full disk; its own error is none."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"no weights could be written to {place}: {error}") from error


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in memory of their own, as safetensors wants them: tied weights share theirs."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.detach().clone() if place in seen else tensor.detach()
        seen.add(place)
    return found


def load_config(folder: str | os.PathLike[str], class_name: str, known: Iterable[str]) -> dict[str, Any]:
    """Return the fields of `folder`'s configuration, without the class's name.

    Raises:
        FileNotFoundError: there is no configuration.
        ValueError: it is not a JSON object, is another class's, or holds an unknown key (the nearest is named).
    """
    config = read_json(existing(Path(folder) / CONFIG_FILE))
    written_by = config.pop(CLASS_KEY, None)
    if written_by != class_name:
        remedy = "Load it with the class that wrote it."
        raise argument_error("folder", f"a {class_name}'s", f"one whose `{CLASS_KEY}` is {written_by!r}", remedy)
    refuse_unknown(config, sorted(known))
    return config


def load_weights(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Copy `folder`'s weights into `model`.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the file is damaged, or its names or shapes are not the model's (the first few are named).
    """
    path = existing(Path(folder) / WEIGHTS_FILE)
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise argument_error(str(path), "a safetensors file", f"a damaged one ({error})", "Copy it again.") from error
    if problems := mismatches(model.state_dict(), weights):
        more = f" and {len(problems) - NUM_NAMED} more" if len(problems) > NUM_NAMED else ""
        remedy = f"They were saved from another configuration than {CONFIG_FILE} states."
        raise argument_error(str(path), "the model's weights", "; ".join(problems[:NUM_NAMED]) + more, remedy)
    model.load_state_dict(weights)


def mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Say for each tensor that is missing, unexpected or of another shape what is wrong with it."""
    missing = [f"no {name}" for name in expected if name not in found]
    unexpected = [f"an unexpected {name}" for name in found if name not in expected]
    reshaped = [
        f"{name} of shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    return missing + unexpected + reshaped


def refuse_unknown(config: Mapping[str, Any], known: list[str]) -> None:
    """Raise a `ValueError` for the first key of `config` that is not known, naming the nearest one that is."""
    for key in config:
        if key not in known:
            raise argument_error(
                key, f"one of {', '.join(known)}", "an unknown key", nearest(key, known) or "Remove it."
            )


def existing(path: Path) -> Path:
    """Return `path`, or raise a `FileNotFoundError` that says what should lie there."""
    if not path.is_file():
        remedy = f"A model's folder holds {CONFIG_FILE} and {WEIGHTS_FILE}."
        raise argument_error(
            "folder", f"one that holds {path.name}", f"{str(path.parent)!r}", remedy, FileNotFoundError
        )
    return path
