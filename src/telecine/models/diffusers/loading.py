"""Diffusers models from a folder, a Hub name or a configuration, and weights into an existing model."""

import inspect
import logging
import re
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily

from telecine.base.checks import argument_error, describe, nearest
from telecine.base.files import read_json
from telecine.base.imports import how_to_install
from telecine.base.safetensors_files import check_readable
from telecine.base.terminal import quiet_logger
from telecine.models.diffusers.families import check_class
from telecine.models.diffusers.outputs import DiffusersModel
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
# A file of weights as diffusers names it: perhaps one of several parts, and perhaps of a variant such as "fp16".
_PART = r"(?:-\d+-of-\d+)?"
_WEIGHTS_NAME = re.compile(
    rf"diffusion_pytorch_model{_PART}(?:\.(?P<variant>\w+))?{_PART}\.(?:safetensors|bin)"
)
# What AutoencoderTiny and AsymmetricAutoencoderKL add to their configurations, beside their arguments.
_ADDED = {"block_out_channels", "force_upcast"}
# Larger than any number of channels, layers or pixels in the configurations of diffusers' autoencoders.
_MAX_SIZE = 2**16

_logger = logging.getLogger(__name__)


def load_module(
    source: str, subfolder: str | None = None, revision: str | None = None
) -> DiffusersModel:
    """Return the diffusers model of a folder or a Hub name, with all its weights, in float32.

    Args:
        source: A folder, or the name of a model on the Hub.
        subfolder: Subfolder of the model. Default: "vae" for a whole pipeline.
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: The folder has no weights.
        ValueError: The configuration is wrong, weights are missing or of another shape, or the folder has several
            variants of them.
    """
    config, config_subfolder = find_config(source, subfolder, revision)
    cls = _class_of(config, source)
    folder = Path(source, config_subfolder or "")
    variant = _check_files(folder) if folder.is_dir() else None
    load = partial(
        cls.from_pretrained,
        source,
        output_loading_info=True,
        subfolder=config_subfolder,
        revision=revision,
        variant=variant,
        torch_dtype=torch.float32,
    )
    with quiet_logger("diffusers"):  # it logs what a file holds, without escapes
        check_num_weights(lambda: cls.from_config(config), source, folder)
        try:
            module, report = load()
        except ValueError as error:
            # Again, for the shapes of all weights.
            _, report = load(low_cpu_mem_usage=False, ignore_mismatched_sizes=True)
            mismatched = report["mismatched_keys"]
            if not mismatched:
                raise
            name, saved_shape, model_shape = mismatched[0]
            got = f"`{name}` of {tuple(saved_shape)}, not {tuple(model_shape)}"
            raise _weights_error(source, got) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # diffusers initialises missing weights with random numbers.
        got = f"one with {len(missing)} weights missing, e.g. {', '.join(missing[:MAX_LISTED])}"
        raise _weights_error(source, got)
    unused_settings = {name for name in config if not name.startswith("_")} - _arguments_of(cls)
    unused = sorted(unused_settings) + sorted(report["unexpected_keys"])
    if unused:
        _logger.warning(
            "%s does not use some of %s: %s", cls.__name__, source, ", ".join(unused[:MAX_LISTED])
        )
    return module


def _check_files(folder: Path) -> str | None:
    """Read the files of weights in a folder once, and return their variant; None if there are weights without one.

    Raises:
        FileNotFoundError: There are none.
        ValueError: There are only variants, and several.
    """
    variants: set[str | None] = set()
    for file in folder.iterdir():
        name = _WEIGHTS_NAME.fullmatch(file.name)
        if name is not None:
            variants.add(name["variant"])
            # diffusers maps it.
            check_readable(file)
    if not variants:
        raise _weights_error(str(folder), "one without a file of them", FileNotFoundError)
    if None in variants:
        return None
    if len(variants) > 1:
        got = ", ".join(sorted(map(str, variants)))
        remedy = "Move all others to another folder."
        raise argument_error(str(folder), "a folder with one variant of the weights", got, remedy)
    return variants.pop()


def _weights_error(source: str, got: str, error: type[Exception] = ValueError) -> Exception:
    return argument_error(
        source, "a model with all its weights", got, "Download or copy it again.", error
    )


def save_module(module: DiffusersModel, folder: str | PathLike[str]) -> None:
    """Write configuration and weights as diffusers does, LoRA adapters merged. A path of the origin is private."""
    merged = merge_low_rank(module)
    origin = getattr(merged, "config", {}).get("_name_or_path")
    if origin and Path(origin).exists():
        merged.register_to_config(_name_or_path=Path(origin).name)
    with safetensors_write(Path(folder)):
        merged.save_pretrained(folder)


def find_config(
    source: str, subfolder: str | None, revision: str | None
) -> tuple[dict[str, Any], str | None]:
    """Return a model's configuration and its subfolder: "vae" if there is none at the top and no subfolder is passed.

    Args:
        source: A folder, or the name of a model on the Hub.
        subfolder: Subfolder of the model.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ConnectionError: The model is on the Hub, which cannot be reached.
        ValueError: There is no configuration.
    """
    if subfolder is not None:
        return _read_config_at(source, subfolder, revision), subfolder
    try:
        return _read_config_at(source, None, revision), None
    except (
        ValueError,
        ConnectionError,
    ):
        # A `ConnectionError` for a pipeline in the Hub's cache, without a network.
        return _read_config_at(source, _PIPELINE_SUBFOLDER, revision), _PIPELINE_SUBFOLDER


def _read_config_at(source: str, subfolder: str | None, revision: str | None) -> dict[str, Any]:
    """Return the configuration in a subfolder; raise a `ConnectionError` if it is on the Hub, which is not reached."""
    try:
        config: Any = _AutoencoderConfig.load_config(source, subfolder=subfolder, revision=revision)
    except (OSError, RecursionError) as error:
        contract = f"a run with a checkpoint, a folder with {CONFIG_FILE} or {_PIPELINE_SUBFOLDER}/{CONFIG_FILE}"
        contract += ", or a Hub name"
        got = repr(source)
        if isinstance(error.__context__, LocalEntryNotFoundError):
            got += ", which is not in the cache, and the Hub cannot be reached"
            remedy = "Check the network, or download the model and use its folder."
            raise argument_error("the model", contract, got, remedy, ConnectionError) from error
        remedy = "Name the folder of the model itself."
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
        raise argument_error(
            source, f"a configuration with `{CLASS_KEY}`", f"one without ({sorted(config)})", remedy
        )
    imported = {subclass.__name__: subclass for subclass in _subclasses(ModelMixin)}
    cls = imported.get(name) or getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, ModelMixin)):
        autoencoders = [word for word in dir(diffusers) if "Autoencoder" in word or "VAE" in word]
        remedy = f"Import the module that defines it, or update diffusers {diffusers.__version__}."
        remedy += " In Python, a module of yours takes the place of its folder."
        remedy = nearest(name, autoencoders) or remedy
        raise argument_error(
            f"{CLASS_KEY} in {source}", "a model class of diffusers", repr(name), remedy
        )
    check_class(f"{CLASS_KEY} in {source}", cls)
    if not callable(getattr(cls, "decode", None)):
        contract = "an autoencoder, with `encode` and `decode`"
        raise argument_error(
            f"{CLASS_KEY} in {source}",
            contract,
            f"{name} without them",
            "Name the folder of its VAE.",
        )
    if cls.__name__ == "AutoencoderRAE" and not is_transformers_available():
        raise ImportError(
            "The encoder of AutoencoderRAE needs transformers: `pip install transformers`."
        )
    return cls


def _check_sizes(config: Mapping[str, Any], source: str) -> None:
    """Raise a `ValueError` if a number in a configuration would build networks without end."""
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        largest = LARGEST_CODEBOOK if name == "codebook_size" else _MAX_SIZE
        if any(isinstance(number, int) and number > largest for number in numbers):
            raise argument_error(
                f"{name} in {source}", f"at most {largest}", describe(value), "Correct it."
            )


def _subclasses(cls: type) -> list[type]:
    subclasses: list[type] = []
    children: list[type] = cls.__subclasses__()
    for child in children:
        subclasses.append(child)
        subclasses.extend(_subclasses(child))
    return subclasses


def build_module(config: str | PathLike[str] | Mapping[str, Any]) -> DiffusersModel:
    """Return a diffusers model with random weights from a configuration: a JSON file, its folder, or its values.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The class or an argument is wrong.
    """
    if isinstance(config, Mapping):
        source = "config"
        values = dict(config)
    else:
        source = str(config)
        values = _read_json_config(Path(config))
    cls = _class_of(values, source)
    arguments = {name: value for name, value in values.items() if not name.startswith("_")}
    check_known_keys(arguments, sorted(_arguments_of(cls)))
    with quiet_logger("diffusers"):
        check_num_weights(lambda: cls.from_config(values), source)
        try:
            return cls.from_config(values)
        except DataDependentOutputException:
            # In a plan, tensors have no values: the quantizer of VidTok computes its size from some.
            mode = detect_fake_mode()
            assert mode is not None
            with unset_fake_temporarily():
                module: DiffusersModel = cls.from_config(values)
            return module._apply(mode.from_tensor)


def _arguments_of(cls: type) -> set[str]:
    return _ADDED | (set(inspect.signature(cls.__init__).parameters) - {"self"})  # type: ignore[misc]


def _read_json_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        remedy = "Write a configuration as diffusers does, with the class name and its arguments."
        contract = f"a JSON file or a folder with {CONFIG_FILE}"
        raise argument_error("config", contract, repr(str(path)), remedy, FileNotFoundError)
    return read_json(file)
