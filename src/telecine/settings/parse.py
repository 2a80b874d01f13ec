"""Settings from recipes, files, typed arguments and the environment: one nested dict, then its dataclasses."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args, get_origin

from telecine.base.checks import SettingsError, argument_error, nearest
from telecine.base.yaml_files import line_of, parse_yaml, read_yaml
from telecine.settings.autoencoder import with_presets
from telecine.settings.group import TABLES, alternatives, kind_at
from telecine.settings.train import DistillConfig, TrainConfig
from telecine.settings.validate import Nested, validate

T = TypeVar("T")
# A file or a recipe, or what a file may hold.
_Layer: TypeAlias = str | PathLike[str] | Nested
# Settings files of the package, which are named instead of a path and given one after another.
RECIPES = Path(__file__).with_name("recipes")
# Configurations of the models of recipes, as far as they are not diffusers' defaults; plans need no network for them.
# Wan 2.2: https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers/blob/main/vae/config.json.
PUBLISHED = RECIPES / "models" / "published.json"
_FREE = ("params", "model_arguments", "tracker_options")  # settings whose values have names of their own
# `TELECINE__CLIPS__HEIGHT=64` in the environment is the setting `clips.height`.
_ENVIRONMENT = "TELECINE__"


@cache
def recipes() -> dict[str, Path]:
    """Return the files of all recipes by name, group by group."""
    return {path.stem: path for group in TABLES["recipe_groups"] for path in sorted((RECIPES / group).glob("*.yaml"))}


def find_recipe(name: str | PathLike[str]) -> Path:
    """Return the path of the recipe of that name, or the name itself if it is that of a file."""
    known, path = recipes(), Path(name)
    if str(name) in known or path.is_file():
        return known.get(str(name), path)
    contract = f"a YAML file or a recipe ({', '.join(sorted(known))})"
    remedy = nearest(str(name), known) or ("Name the file in it." if path.is_dir() else "Check the spelling.")
    got = f"{name}, {'a folder' if path.is_dir() else 'which does not exist'}"
    raise argument_error("config", contract, got, remedy, FileNotFoundError)


def describe_recipes() -> Iterator[str]:
    """Yield the lines of a list of all recipes, each with the first line of its file."""
    width = max(map(len, recipes()))
    for group, text in TABLES["recipe_groups"].items():
        yield f"{text}:"
        for path in sorted((RECIPES / group).glob("*.yaml")):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            yield f"  {path.stem:<{width}}  {first.removeprefix('# ')}"
        yield ""
    yield "For example: telecine train --config cogvideox --config decoder --config 24gb --data my_videos/"


def read_config(path: _Layer, *others: _Layer) -> TrainConfig:
    """Return the settings in a YAML file, or of a recipe, such as "demo" for a CPU or "gpu" for training from scratch.

    Of several files, later ones override earlier ones: `read_config("wan2.1", "decoder", "24gb")`. A dict is what a
    file may hold: `read_config("demo", {"clips.height": 64})`. Settings that are left out have their defaults. Those of
    `telecine distill` make it a `DistillConfig`.

    Raises:
        FileNotFoundError: If there is no such file.
        SettingsError: If a setting is unknown or of the wrong type; it has all such mistakes, each with its line.
    """
    layers = [path, *others]
    with _naming_lines([each for each in layers if not isinstance(each, Mapping)], {}):
        values = merged(map(read_layer, layers))
        return validate(DistillConfig if values.keys() & DistillConfig.__annotations__.keys() else TrainConfig, values)


def settings_from(kind: type[T], files: Sequence[str | PathLike[str]], typed: Sequence[tuple[str, str]]) -> T:
    """Return the settings in files, in texts by dotted names and, of a training run, in the environment.

    Later ones override earlier ones; what `accelerate launch` passes on overrides files alone. A `SettingsError` has
    all mistakes, each with its place.
    """
    is_run = issubclass(kind, TrainConfig)
    launched = _launcher_layer() if is_run else {}
    variables = environment_variables() if is_run else {}
    places = {name: "It is from `accelerate launch`." for name in launched} | {option: "" for option, _ in typed}
    places |= {name: f"It is {each} of the environment." for name, each in variables.items()}
    with _naming_lines(files, places):
        environment = _typed_layer(kind, ((name, os.environ[each]) for name, each in variables.items()))
        values = merged([*map(read_layer, files), launched, _typed_layer(kind, typed), environment])
        if "allow_code" in values:
            remedy = "Code that settings name is run only if you type it: add `--allow_code PACKAGE`."
            got = f"{values['allow_code']} in a settings file"
            raise argument_error("allow_code", "an argument of the command", got, remedy)
        return validate(kind, values)


@contextmanager
def _naming_lines(files: Sequence[str | PathLike[str]], others: Mapping[str, str]) -> Iterator[None]:
    """Say of each mistake in settings where it is: the line of the last file that has it, or the text in `others`."""
    try:
        yield
    except ValueError as error:
        mistakes = error.mistakes if isinstance(error, SettingsError) else [str(error)]
        located = sorted(_located(each, files, others) for each in mistakes)
        raise SettingsError([text for _, text in located]) from None


def _located(mistake: str, files: Sequence[str | PathLike[str]], others: Mapping[str, str]) -> tuple[int, str]:
    """Return the line of a mistake in a settings file, 0 if it is in none, and the mistake with its place."""
    name = mistake.split("`")[1] if "`" in mistake else ""
    for each, place in others.items():
        if f"{name}.".startswith(f"{each}."):
            return 0, f"{mistake} {place}".rstrip()
    for file in reversed(files):
        if name and (line := line_of(find_recipe(file), name)):
            return line, f"{mistake} See line {line} of {os.fspath(file)}."
    return 0, mistake


def read_layer(source: _Layer) -> Nested:
    """Return the settings of a recipe, a file or a dict, which has each once; else raise a `ValueError`."""
    path = "settings" if isinstance(source, Mapping) else find_recipe(source)
    values = source if isinstance(source, Mapping) else read_yaml(find_recipe(source)) or {}
    names = [name for name, _ in flat_items(values)]
    if twice := next((each for index, each in enumerate(names) if each in names[:index]), None):
        raise argument_error(str(path), "settings that are each given once", f"`{twice}` twice", "Remove one.")
    return nested(values.items())


def environment_variables() -> dict[str, str]:
    """Return the names of the variables that have settings of a training run, by the settings' dotted names."""
    found = [name for name in os.environ if name.startswith(_ENVIRONMENT)]
    return {name.removeprefix(_ENVIRONMENT).lower().replace("__", "."): name for name in found}


def from_environment() -> list[str]:
    """Return "name=value" for each setting of a training run that the launcher or the environment has."""
    given = [f"{name}={value} (accelerate launch)" for name, value in _launcher_layer().items()]
    return given + [f"{name}={os.environ[name]}" for name in sorted(environment_variables().values())]


def _typed_layer(kind: type, typed: Iterable[tuple[str, str]]) -> Nested:
    items = list(typed)
    for name, _ in (each for each in items if not each[1].strip()):
        remedy = "Check the variable of the shell, or type null for none."
        raise argument_error(name, "a value", "an empty text", remedy)
    return nested((name, _typed_value(kind_at(kind, name), text)) for name, text in items)


def _launcher_layer() -> Nested:
    """Return the settings that `accelerate launch` passes on from the file of `accelerate config`, if they are on."""
    passed = {name: text.lower() for name, text in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    found = {name: passed.get(f"ACCELERATE_{name.upper()}", "no") for name in ("mixed_precision", "dynamo_backend")}
    found |= {"device": "cpu"} if passed.get("ACCELERATE_USE_CPU") == "true" else {}
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):  # what is none of `sharding` is refused as such
        if passed.get(f"ACCELERATE_USE_{kind}") == "true":
            found["sharding"] = kind.lower() + (passed.get("FSDP_VERSION", "1") if kind == "FSDP" else "")
    return {name: value for name, value in found.items() if value != "no"}


def _typed_value(kind: Any, text: str) -> Any:
    """Return the value that a text stands for: text for a setting that is one, a list with commas, or YAML."""
    value = parse_yaml(text)
    kinds = alternatives(kind)
    if get_origin(kind) is tuple and not isinstance(value, list):
        if str in alternatives(item := get_args(kind)[0]):
            return [_typed_value(item, each.strip()) for each in text.split(",")]
        value = parse_yaml(f"[{text}]")
        return value if isinstance(value, list) else [text]
    is_text = str in kinds and not {int, float, bool} & {*kinds}
    return text if is_text and value is not None else value


def nested(items: Iterable[tuple[str, Any]]) -> Nested:
    """Return settings by dotted names as nested groups, with the values of presets; later ones override earlier."""
    found: Nested = {}
    for name, value in items:
        if isinstance(value, dict) and str(name).rpartition(".")[2] not in _FREE:
            value = nested(value.items())
        for part in reversed(str(name).split(".")):
            value = {part: value}
        found = merged([found, value])
    if isinstance(of_model := found.get("causal_vae"), dict):
        found["causal_vae"] = with_presets(of_model)
    return found


def merged(layers: Iterable[Nested]) -> Nested:
    """Return nested settings in which later layers override earlier ones, setting by setting."""
    found: Nested = {}
    for layer in layers:
        for name, value in layer.items():
            before = found.get(name)
            both = isinstance(before, dict) and isinstance(value, dict)
            found[name] = merged([before, value]) if both else value  # type: ignore[list-item]
    return found


def flat_items(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested settings with their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
