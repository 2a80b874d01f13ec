"""Settings from recipes, files, the environment and typed arguments: one nested dict, then its dataclasses."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from telecine.base.checks import ArgumentError, SettingsError, argument_error, nearest
from telecine.base.yaml_files import line_of, read_yaml
from telecine.settings.autoencoder import with_presets
from telecine.settings.distill import DistillConfig
from telecine.settings.errors import validate
from telecine.settings.listing import settings_of
from telecine.settings.train import TrainConfig
from telecine.settings.upgrade import REMOVED, drop_removed, is_of_run, upgrade_run

T = TypeVar("T")
# Settings as YAML has them.
Nested: TypeAlias = dict[str, Any]
# A recipe or the path of a file, or the settings themselves, as a file may hold them.
Source: TypeAlias = str | PathLike[str] | Nested
# Settings files of the package, which are named instead of a path and given one after another.
RECIPES = Path(__file__).with_name("recipes")
_RECIPE_GROUPS = {
    ".": "Whole runs",
    "models": "Published autoencoders, first",
    "stages": "What is trained, after the model",
    "objectives": (
        "How others train, after gpu or after the model, instead of a stage; sharp_objective, after demo"
    ),
    "hardware": "What it is trained on, last",
    "distillation": "For telecine distill, one after the other",
}
# Configurations of the models of recipes, as far as they are not diffusers' defaults; plans need no network for them.
# Wan 2.2: https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers/blob/main/vae/config.json.
PUBLISHED = RECIPES / "models" / "published.json"
# The last names of settings in whose values users choose all names, such as `params`. No other setting has such a name.
FREE_NAMES = frozenset(
    setting.name.rpartition(".")[2]
    for setting in settings_of(DistillConfig, inside_values=True)
    if setting.is_free
)
# Those that `TrainConfig` lacks.
_STUDENT_SETTINGS = {field.name for field in fields(DistillConfig)} - {
    field.name for field in fields(TrainConfig)
}


@cache
def recipes() -> dict[str, Path]:
    """Return the files of all recipes by name, group by group."""
    return {
        path.stem: path
        for group in _RECIPE_GROUPS
        for path in sorted((RECIPES / group).glob("*.yaml"))
    }


def find_recipe(name: str | PathLike[str]) -> Path:
    """Return the path of the recipe of that name, or the name itself if it names a file.

    Raises:
        FileNotFoundError: There is no such recipe or file.
    """
    path = Path(name)
    recipe = recipes().get(str(name))
    if recipe is not None:
        return recipe
    if path.is_file():
        return path
    contract = f"a YAML file or a recipe ({', '.join(sorted(recipes()))})"
    similar = nearest(str(name), recipes())
    if path.is_dir():
        got = f"{name}, a folder"
        remedy = similar or "Name the file in it."
    else:
        got = f"{name}, which does not exist"
        remedy = similar or "Check the spelling."
    raise argument_error("config", contract, got, remedy, FileNotFoundError)


def describe_recipes() -> Iterator[str]:
    """Yield the lines of a list of all recipes, each with the first line of its file."""
    width = max(len(name) for name in recipes())
    for group, text in _RECIPE_GROUPS.items():
        yield f"{text}:"
        for path in sorted((RECIPES / group).glob("*.yaml")):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            yield f"  {path.stem:<{width}}  {first.removeprefix('# ')}"
        yield ""
    yield "For example: telecine train --config cogvideox --config decoder --config 24gb --data my_videos/"


@dataclass(frozen=True)
class Layer:
    """Nested settings from one place. Of several layers, later ones override earlier ones, setting by setting."""

    values: Nested
    file: str | PathLike[str] | None = None
    """The recipe or the file that has them."""
    origin: str = ""
    """Where they are from, if not from a file, as a sentence for errors."""

    def has(self, setting: str) -> bool:
        """Return whether it has a setting, a setting inside it, or a value in place of its group."""
        for name, _ in flat_items(self.values):
            if f"{setting}.".startswith(f"{name}.") or f"{name}.".startswith(f"{setting}."):
                return True
        return False

    def origin_of(self, setting: str) -> tuple[int, str]:
        """Return the line of a setting in the file, 0 without one, and a sentence about where it is from."""
        if self.file is not None:
            line = line_of(find_recipe(self.file), setting)
            if line is not None:
                return line, f"See line {line} of {os.fspath(self.file)}."
        return 0, self.origin


def read_layer(source: Source) -> Layer:
    """Return the settings of a recipe, of a file or of a dict.

    Those in a file that a run of an older version has saved are upgraded: a run with them does what that one did.

    Raises:
        ValueError: It has a setting twice, one of an older version at a value that it can no longer have, or
            `allow_code`.
    """
    if isinstance(source, Mapping):
        name = "settings"
        file = None
        values: Mapping[str, Any] = source
    else:
        name = os.fspath(source)
        file = source
        values = read_yaml(find_recipe(source)) or {}
    names = [setting for setting, _ in flat_items(values)]
    for setting in names:
        if names.count(setting) > 1:
            raise argument_error(
                name, "settings that are each given once", f"`{setting}` twice", "Remove one."
            )
    if "allow_code" in values:
        remedy = "Code that settings name is run only if you type it: add `--allow_code PACKAGE`."
        got = f"{values['allow_code']} in a settings file"
        raise argument_error("allow_code", "an argument of the command", got, remedy)
    layer = Layer(nested(values.items()), file)
    for setting, value in drop_removed(layer.values).items():
        contract = "left out"
        remedy = f"Remove it: this version does what {REMOVED[setting]!r} did."
        error = argument_error(setting, contract, repr(value), remedy)
        assert isinstance(error, ArgumentError)
        raise _with_origins([error], [layer])
    if file is not None and is_of_run(layer.values):
        return replace(layer, values=upgrade_run(layer.values))
    return layer


def read_config(source: Source, *others: Source) -> TrainConfig:
    """Return the settings in a YAML file, or of a recipe, such as "demo" for a CPU or "gpu" for training from scratch.

    Of several files, later ones override earlier ones: `read_config("wan2.1", "decoder", "24gb")`. A dict is what a
    file may hold: `read_config("demo", {"clips.height": 64})`. Settings that are left out have their defaults. Those of
    `telecine distill` make it a `DistillConfig`.

    Raises:
        FileNotFoundError: There is no such file.
        SettingsError: A setting is unknown or wrong. It has all errors, each with its line.
    """
    layers = [read_layer(layer) for layer in (source, *others)]
    for layer in layers:
        if not _STUDENT_SETTINGS.isdisjoint(layer.values):
            return settings_from(DistillConfig, layers)
    return settings_from(TrainConfig, layers)


def settings_from(kind: type[T], layers: Sequence[Layer]) -> T:
    """Return settings as their dataclass.

    Args:
        kind: The dataclass.
        layers: Where they are from. Later ones override earlier ones.

    Raises:
        SettingsError: It has all errors, each with its origin.
    """
    try:
        values: Nested = {}
        for layer in layers:
            values = merged([values, _without_presets(layer.values)])
        return validate(kind, values)
    except SettingsError as error:
        raise _with_origins(error.errors, layers) from None
    except ArgumentError as error:
        raise _with_origins([error], layers) from None


def _without_presets(settings: Nested) -> Nested:
    """Return settings with the values of presets in their place, so that they override those of earlier layers."""
    model = settings.get("causal_vae")
    if not isinstance(model, dict):
        return settings
    return {**settings, "causal_vae": with_presets(model)}


def _with_origins(errors: Iterable[ArgumentError], layers: Sequence[Layer]) -> SettingsError:
    """Return an error that says of each error where the last layer with that setting is from, in order of lines."""
    located = []
    for error in errors:
        line = 0
        origin = ""
        for layer in reversed(layers):
            if layer.has(error.name):
                line, origin = layer.origin_of(error.name)
                break
        text = f"{error.text} {origin}".rstrip()
        located.append((line, ArgumentError(text, error.name)))
    located.sort(key=lambda item: item[0])
    return SettingsError([error for _, error in located])


def launcher_settings() -> Nested:
    """Return the settings in the environment variables of `accelerate launch`, which reads `accelerate config`."""
    settings: Nested = {}
    for name in ("mixed_precision", "dynamo_backend"):
        value = os.environ.get(f"ACCELERATE_{name.upper()}", "no").lower()
        if value != "no":
            settings[name] = value
    if _is_on("ACCELERATE_USE_CPU"):
        settings["device"] = "cpu"
    # `sharding` refuses kinds other than its own values.
    if _is_on("ACCELERATE_USE_FSDP"):
        settings["sharding"] = "fsdp" + os.environ.get("FSDP_VERSION", "1")
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        settings["sharding"] = "deepspeed"
    if _is_on("ACCELERATE_USE_MEGATRON_LM"):
        settings["sharding"] = "megatron_lm"
    return settings


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() == "true"


def nested(items: Iterable[tuple[str, Any]]) -> Nested:
    """Return settings by dotted names as nested groups; later ones override earlier ones."""
    settings: Nested = {}
    for name, value in items:
        *groups, last = str(name).split(".")
        layer = {last: value}
        if isinstance(value, dict) and last not in FREE_NAMES:
            layer = {last: nested(value.items())}
        for group in reversed(groups):
            layer = {group: layer}
        settings = merged([settings, layer])
    return settings


def merged(layers: Iterable[Nested]) -> Nested:
    """Return nested settings in which later layers override earlier ones, setting by setting."""
    settings: Nested = {}
    for layer in layers:
        for name, value in layer.items():
            before = settings.get(name)
            if isinstance(before, dict) and isinstance(value, dict):
                settings[name] = merged([before, value])
            else:
                settings[name] = value
    return settings


def flat_items(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested settings with their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
