"""Diffusers models from a folder, a Hub name or a configuration, and weights into an existing model."""

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from telecine.base.checks import argument_error, describe, nearest
from telecine.base.files import read_json
from telecine.base.imports import how_to_install
from telecine.models.diffusers.families import DiffusersModel, check_class
from telecine.models.lora import merge_low_rank
from telecine.models.pretrained import (
    CLASS_KEY,
    CONFIG_FILE,
    MAX_LISTED,
    check_known_keys,
    check_num_weights,
    safetensors_write,
)
from telecine.settings.autoencoder import LARGEST_CODEBOOK

try:
    import diffusers
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.utils import is_transformers_available
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
except ImportError as missing:
    raise ImportError(f"This model needs diffusers. {how_to_install('diffusers')}") from missing

_PIPELINE_SUBFOLDER = "vae"
# What AutoencoderTiny and AsymmetricAutoencoderKL add to their configurations, beside their arguments.
_ADDED = {"block_out_channels", "force_upcast"}
# Larger than any number of channels, layers or pixels in the configurations of diffusers' autoencoders.
_MAX_SIZE = 2**16

_logger = logging.getLogger(__name__)


def load_module(source: str, subfolder: str | None = None, revision: str | None = None) -> DiffusersModel:
    """Return the diffusers model of a folder or a Hub name, with all its weights, in float32."""
    config, place = find_config(source, subfolder, revision)
    cls = _class_of(config, source)
    folder, contract, remedy = Path(source, place or ""), "a model with all its weights", "Download or copy it again."
    files = [*folder.glob("diffusion_pytorch_model*")]
    if folder.is_dir() and not files:
        raise argument_error(source, contract, "one without a file of them", remedy, FileNotFoundError)
    variant = "fp16" if files and all(".fp16" in file.name for file in files) else None
    options = {"subfolder": place, "revision": revision, "variant": variant, "torch_dtype": torch.float32}
    load = partial(cls.from_pretrained, source, output_loading_info=True, **options)
    with _quiet_diffusers():
        check_num_weights(lambda: cls.from_config(config), source, folder)
        try:
            module, report = load()
        except ValueError as error:
            _, report = load(low_cpu_mem_usage=False, ignore_mismatched_sizes=True)  # with all shapes
            for name, its, our in report["mismatched_keys"]:
                raise argument_error(source, contract, f"`{name}` of {tuple(its)}, not {tuple(our)}", remedy) from error
            raise
    if missing := sorted(report["missing_keys"]):
        # diffusers initialises missing weights with random numbers.
        got = f"one with {len(missing)} weights missing, e.g. {', '.join(missing[:MAX_LISTED])}"
        raise argument_error(source, contract, got, remedy)
    unused = {name for name in config if not name.startswith("_")} - _arguments_of(cls)
    if names := [*sorted(unused), *sorted(report["unexpected_keys"])]:
        _logger.warning("%s does not use some of %s: %s", cls.__name__, source, ", ".join(names[:MAX_LISTED]))
    return module


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Keep diffusers from logging what a file holds, beside our own errors and without escapes."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def save_module(module: DiffusersModel, folder: str | PathLike[str]) -> None:
    """Write configuration and weights as diffusers does, low-rank updates merged. A path of the origin is private."""
    merged = merge_low_rank(module)
    origin = getattr(merged, "config", {}).get("_name_or_path")
    if origin and Path(origin).exists():
        merged.register_to_config(_name_or_path=Path(origin).name)
    with safetensors_write(Path(folder)):
        merged.save_pretrained(folder)


def find_config(source: str, subfolder: str | None, revision: str | None) -> tuple[dict[str, Any], str | None]:
    """Return a model's configuration and its subfolder: "vae" if there is none at the top and no subfolder is given."""
    try:
        return _read_config_at(source, subfolder, revision), subfolder
    except (ValueError, ConnectionError):  # the latter of a pipeline in the Hub's cache, without a network
        if subfolder is not None:
            raise
    return _read_config_at(source, _PIPELINE_SUBFOLDER, revision), _PIPELINE_SUBFOLDER


def _read_config_at(source: str, subfolder: str | None, revision: str | None) -> dict[str, Any]:
    """Return the configuration in a subfolder; raise a `ConnectionError` if it is on the Hub, which is not reached."""
    try:
        config: Any = _AutoencoderConfig.load_config(source, subfolder=subfolder, revision=revision)
    except (OSError, RecursionError) as error:
        folder = f"a folder with {CONFIG_FILE} or {_PIPELINE_SUBFOLDER}/{CONFIG_FILE}"
        contract, got = f"a run with a checkpoint, {folder}, or a Hub name", repr(source)
        remedy = "Name the folder of the model itself."
        if isinstance(error.__context__, LocalEntryNotFoundError):
            got += ", which is not in the cache, and the Hub cannot be reached"
            remedy = "Check the network, or download the model and use its folder."
            raise argument_error("the model", contract, got, remedy, ConnectionError) from error
        if isinstance(error.__context__, RepositoryNotFoundError):
            got += ", which the Hub does not have or does not show you"
            remedy = "Check the spelling, or log in with `hf auth login`."
        raise argument_error("the model", contract, got, remedy) from error
    return dict(config)


class _AutoencoderConfig(ConfigMixin):
    """Loads the configuration of any class."""

    config_name: Any = CONFIG_FILE


def _class_of(config: Mapping[str, Any], source: str) -> Any:
    """Return the class that a configuration names: an already imported `ModelMixin`, or one of diffusers."""
    _check_sizes(config, source)
    name = config.get(CLASS_KEY)
    if not isinstance(name, str):
        remedy = f'Add for example "{CLASS_KEY}": "AutoencoderKLWan".'
        raise argument_error(source, f"a configuration with `{CLASS_KEY}`", f"one without ({sorted(config)})", remedy)
    imported = {cls.__name__: cls for cls in _subclasses(ModelMixin)}
    found = imported.get(name) or getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        known = [word for word in dir(diffusers) if "Autoencoder" in word or "VAE" in word]
        update = f"Import the module that defines it, or update diffusers {diffusers.__version__}."
        update += " In Python, a module of yours takes the place of its folder."
        remedy = nearest(name, known) or update
        raise argument_error(f"{CLASS_KEY} in {source}", "a model class of diffusers", repr(name), remedy)
    check_class(f"{CLASS_KEY} in {source}", found)
    if found.__name__ == "AutoencoderRAE" and not is_transformers_available():
        raise ImportError("The encoder of AutoencoderRAE needs transformers: `pip install transformers`.")
    return found


def _check_sizes(config: Mapping[str, Any], source: str) -> None:
    """Raise a `ValueError` if a number in a configuration would build networks without end."""
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        largest = LARGEST_CODEBOOK if name == "codebook_size" else _MAX_SIZE
        if any(isinstance(number, int) and number > largest for number in numbers):
            raise argument_error(f"{name} in {source}", f"at most {largest}", describe(value), "Correct it.")


def _subclasses(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    return [found for child in children for found in (child, *_subclasses(child))]


def build_module(config: str | PathLike[str] | Mapping[str, Any]) -> DiffusersModel:
    """Return a diffusers model with random weights from a configuration: a JSON file, its folder, or its values."""
    source = "config" if isinstance(config, Mapping) else str(config)
    values = dict(config) if isinstance(config, Mapping) else _read_json_config(Path(config))
    cls = _class_of(values, source)
    arguments = {name: value for name, value in values.items() if not name.startswith("_")}
    check_known_keys(arguments, sorted(_arguments_of(cls)))
    with _quiet_diffusers():
        check_num_weights(lambda: cls.from_config(values), source)
        return cls.from_config(values)


def _arguments_of(cls: type) -> set[str]:
    return _ADDED | (set(inspect.signature(cls.__init__).parameters) - {"self"})  # type: ignore[misc]


def _read_json_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        remedy = "Write a configuration as diffusers does, with the class name and its arguments."
        contract = f"a JSON file or a folder with {CONFIG_FILE}"
        raise argument_error("config", contract, repr(str(path)), remedy, FileNotFoundError)
    return read_json(file)
