"""Diffusers models from a folder, a hub's name or a configuration, and weights into one that is there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from telecine.autoencoders.pretrained import CLASS_KEY, CONFIG_FILE, NUM_NAMED, mismatches, refuse_unknown
from telecine.files import read_json
from telecine.shapes import argument_error, nearest

try:
    import diffusers
    from diffusers import ConfigMixin, ModelMixin
except ImportError as missing:
    raise ImportError('This model needs diffusers: run `pip install "telecine[diffusers]"`.') from missing

PIPELINE_SUBFOLDER = "vae"


def load_module(
    name_or_folder: str | PathLike[str], *, subfolder: str | None, revision: str | None, dtype: torch.dtype
) -> Any:
    """Return the diffusers model of a folder or a hub's name, with every weight from there.

    Raises:
        ValueError: there is no configuration, its class is unknown, or weights are missing.
    """
    config, place = find_config(name_or_folder, subfolder=subfolder, revision=revision)
    module, report = class_of(config, str(name_or_folder)).from_pretrained(
        str(name_or_folder), subfolder=place, revision=revision, torch_dtype=dtype, output_loading_info=True
    )
    if report["missing_keys"]:
        # diffusers would go on with random numbers in their place.
        named = ", ".join(sorted(report["missing_keys"])[:NUM_NAMED])
        got = f"{len(report['missing_keys'])} weights too few, e.g. {named}"
        raise argument_error(str(name_or_folder), "a model with all its weights", got, "Download or copy it again.")
    return module


def find_config(
    name_or_folder: str | PathLike[str], *, subfolder: str | None, revision: str | None
) -> tuple[dict[str, Any], str | None]:
    """Return a model's configuration and the subfolder that it lies in: "vae" if that is a whole pipeline's.

    Raises:
        ValueError: there is none.
    """
    try:
        return read_config_at(name_or_folder, subfolder, revision), subfolder
    except ValueError:
        if subfolder is not None:
            raise
    return read_config_at(name_or_folder, PIPELINE_SUBFOLDER, revision), PIPELINE_SUBFOLDER


def read_config_at(name_or_folder: str | PathLike[str], subfolder: str | None, revision: str | None) -> dict[str, Any]:
    """Return the configuration in one place of a folder or a hub's model.

    Raises:
        ValueError: there is none.
    """
    try:
        config: Any = VAEConfig.load_config(str(name_or_folder), subfolder=subfolder, revision=revision)
    except OSError as error:
        contract = f"a folder with {CONFIG_FILE}, a pipeline's with {PIPELINE_SUBFOLDER}/{CONFIG_FILE}, or a hub's name"
        remedy = "Name the folder with `subfolder` if it is another one."
        raise argument_error("name_or_folder", contract, f"{str(name_or_folder)!r}", remedy) from error
    return dict(config)


class VAEConfig(ConfigMixin):
    """Reads configurations of any class."""

    config_name: Any = CONFIG_FILE


def class_of(config: Mapping[str, Any], source: str) -> Any:
    """Return the class that a configuration names: one of diffusers', or a `ModelMixin` that is imported already.

    Raises:
        ValueError: it names none, or one that is not there.
    """
    name = config.get(CLASS_KEY)
    if not isinstance(name, str):
        remedy = f'Add for instance "{CLASS_KEY}": "AutoencoderKLWan".'
        raise argument_error(source, f"a configuration with `{CLASS_KEY}`", f"one without ({sorted(config)})", remedy)
    own = {cls.__name__: cls for cls in subclasses(ModelMixin)}
    found = own.get(name) or getattr(diffusers, name, None)
    if found is None:
        known = [word for word in dir(diffusers) if "Autoencoder" in word or "VAE" in word]
        remedy = (
            nearest(name, known) or f"Import the module that defines it, or update diffusers {diffusers.__version__}."
        )
        raise argument_error(f"{CLASS_KEY} in {source}", "a model class of diffusers", repr(name), remedy)
    return found


def subclasses(cls: type) -> list[type]:
    """Return every class that derives from `cls`."""
    children: list[type] = cls.__subclasses__()
    return [found for child in children for found in (child, *subclasses(child))]


def build_module(config: str | PathLike[str] | Mapping[str, Any]) -> Any:
    """Return a diffusers model with random weights from a configuration: a JSON file, its folder, or its values.

    Raises:
        ValueError: the class is unknown or an argument is not its own (the nearest is named).
    """
    source = "config" if isinstance(config, Mapping) else str(config)
    values = dict(config) if isinstance(config, Mapping) else read_config(Path(config))
    cls = class_of(values, source)
    arguments = {name: value for name, value in values.items() if not name.startswith("_")}
    refuse_unknown(arguments, sorted(set(inspect.signature(cls.__init__).parameters) - {"self"}))
    return cls.from_config(values)


def read_config(path: Path) -> dict[str, Any]:
    """Return the values in a JSON file, or in the one of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        remedy = "Write one as diffusers does, with the class's name and its arguments."
        raise argument_error("config", "a JSON file or a folder with one", f"{str(path)!r}", remedy, FileNotFoundError)
    return read_json(file)


def copy_weights(module: nn.Module, folder: str | PathLike[str]) -> None:
    """Copy a folder's weights into a model of the same configuration.

    Raises:
        ValueError: the names or shapes are not the model's (the first few are named).
    """
    loaded = load_module(folder, subfolder=None, revision=None, dtype=torch.float32)
    weights = loaded.state_dict()
    if problems := mismatches(module.state_dict(), weights):
        more = f" and {len(problems) - NUM_NAMED} more" if len(problems) > NUM_NAMED else ""
        remedy = "Load weights of the same configuration, before low-rank updates are added."
        raise argument_error(str(folder), "the model's weights", "; ".join(problems[:NUM_NAMED]) + more, remedy)
    module.load_state_dict(weights)
