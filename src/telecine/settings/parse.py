"""Settings from recipes, files, typed arguments and the environment: one nested dict, then its dataclasses."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from os import PathLike
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from telecine.base.checks import argument_error, describe, nearest
from telecine.settings.autoencoder import with_presets
from telecine.settings.group import alternatives, choices_of, describe_type, kind_at, kinds_of, settings_of
from telecine.settings.recipes import find_recipe
from telecine.settings.train import TrainConfig
from telecine.settings.yaml_file import parse_value, read_yaml

T = TypeVar("T")
# Settings as YAML has them.
Nested = dict[str, Any]
# `TELECINE__CLIPS__HEIGHT=64` in the environment is the setting `clips.height`.
ENVIRONMENT = "TELECINE__"
# Settings of older files that are no more, and their value now.
REMOVED: Mapping[str, object] = {
    "objective.reconstruction.logvar_init": 0.0,
    "objective.perceptual.stride": 1,
    "objective.gan.lecam_decay": 0.999,
    "objective.adaptive_weight.decay": 0.0,
    "discriminator.pad_mode": "first",
    "discriminator.init_optimizer": False,
}


def read_config(path: str | PathLike[str], *others: str | PathLike[str]) -> TrainConfig:
    """Return the settings in a YAML file, or of a recipe, such as "demo" for a CPU or "gpu" for training from scratch.

    Of several files, later ones override earlier ones: `read_config("wan2.1", "decoder", "24gb")`. Settings that they
    leave out have their defaults. Change some with `dataclasses.replace`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a setting is unknown or of the wrong type.
    """
    return config_from(*(read_layer(each) for each in (path, *others)))


def config_from(*layers: Nested) -> TrainConfig:
    """Return the settings in nested plain values, as YAML has them; later ones override earlier ones.

    Raises:
        ValueError: If a setting is unknown or of the wrong type.
    """
    return validate(TrainConfig, merged(nested(layer.items()) for layer in layers))


def read_layer(name: str | PathLike[str]) -> Nested:
    """Return the settings of a recipe or of a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or has a setting twice, as a dotted name and in its group.
    """
    path = find_recipe(name)
    values = read_yaml(path) or {}
    names = list(_flat_names(values))
    if twice := next((each for index, each in enumerate(names) if each in names[:index]), None):
        raise argument_error(str(path), "settings that are each given once", f"`{twice}` twice", "Remove one.")
    return nested(values.items())


def typed_layer(kind: type, typed: Iterable[tuple[str, str]]) -> Nested:
    """Return settings that were typed as text, by their dotted names."""
    return nested((name, _typed_value(kind_at(kind, name), text)) for name, text in typed)


def environment_layer(kind: type) -> Nested:
    """Return the settings in the environment, such as `TELECINE__CLIPS__HEIGHT=64`."""
    found = {name: text for name, text in os.environ.items() if name.startswith(ENVIRONMENT)}
    names = {name.removeprefix(ENVIRONMENT).lower().replace("__", "."): text for name, text in found.items()}
    return typed_layer(kind, names.items())


def _typed_value(kind: Any, text: str) -> Any:
    """Return the value that a text stands for: text for a setting that is one, a list of one for a list, or YAML."""
    value = parse_value(text)
    kinds = alternatives(kind)
    if get_origin(kind) is tuple and not isinstance(value, list):
        return [_typed_value(get_args(kind)[0], text)]
    is_text = str in kinds and not {int, float, bool} & {*kinds}
    return text if is_text and value is not None else value


def nested(items: Iterable[tuple[str, Any]]) -> Nested:
    """Return settings by dotted names as nested groups, with the values of presets; later ones override earlier."""
    found: Nested = {}
    for name, value in items:
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


def validate(kind: type[T], values: Nested, prefix: str = "") -> T:
    """Return settings as an instance of their dataclass.

    Args:
        kind: The dataclass.
        values: Its settings; groups and ramps as dicts or as instances.
        prefix: What stands before the names of settings in errors.

    Raises:
        ValueError: A setting is unknown, of the wrong type or out of range, or settings contradict each other.
    """
    try:
        return cast(T, _adapter(cast(Hashable, kind)).validate_python(_without_removed(values)))
    except ValidationError as error:
        found = [(_path_of(kind, each["loc"]), each) for each in error.errors(include_url=False)]
        # Of the alternatives of a type, the one that was meant fails deepest, or in its own check.
        path, details = max(found, key=lambda each: (len(each[0]), each[1]["type"] == "value_error"))
        raise _error(kind, values, path, details, prefix) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _without_removed(values: Nested, before: str = "") -> Nested:
    """Return settings without those that are no more, if they have the value that they have now."""
    kept = {}
    for name, value in values.items():
        path = f"{before}{name}"
        if path not in REMOVED:
            kept[name] = _without_removed(value, f"{path}.") if isinstance(value, dict) else value
        elif value != REMOVED[path]:
            raise argument_error(path, f"left out (it is {REMOVED[path]!r} now)", repr(value), "Remove it.")
    return kept


def _path_of(kind: Any, location: Sequence[str | int]) -> list[str]:
    """Return the names of a setting's groups and its own, without those of a union's alternatives."""
    path: list[str] = []
    is_alternative = False
    for part in location:
        several = [each for each in alternatives(kind) if each is not NoneType]
        if len(several) > 1 and not is_alternative:
            is_alternative = True
            kind = next((each for each in several if getattr(each, "__name__", None) == part), kind)
        else:
            path.append(str(part))
            is_alternative = False
            kind = kind_at(kind, str(part))
    return path


def _error(kind: type, values: Any, path: list[str], details: ErrorDetails, prefix: str) -> Exception:
    """Return the error about the setting at a path, from the validator's type of error and its own check's error."""
    is_too_short = details["type"] == "missing" and isinstance(details["loc"][-1], int)
    if is_too_short:
        path = path[:-1]
    name, of_setting = prefix + ".".join(path), kind_at(kind, ".".join(path)) if path else kind
    if details["type"] == "value_error":
        text = str(details["ctx"]["error"])
        return ValueError(f"`{name}{'.' if path else ''}{text[1:]}" if text.startswith("`") else text)
    if details["type"] == "unexpected_keyword_argument":
        known = [each.name for each in settings_of(kind, all_names=True)]
        group = kind_at(kind, ".".join(path[:-1]))  # in a dict, such as a term
        known += [".".join([*path[:-1], each]) for each in _fields_of(group)]
        found = nearest(".".join(path), known).replace("`", f"`{prefix}", 1)
        return ValueError(f"`{name}` is not a setting. {found}".rstrip())
    if details["type"] == "missing" and not is_too_short:
        path, missing = path[:-1], path[-1]
        contract = describe_type(kind_at(kind, ".".join(path)))
        return ValueError(f"`{prefix}{'.'.join(path)}` must be {contract}, but got one without `{missing}`.")
    for part in path:
        values = values[int(part)] if isinstance(values, list | tuple) else values[part]
    if is_dataclass(of_setting):
        return argument_error(name, "a group of settings", values, "Indent `key: value` lines below it.")
    remedy = nearest(values, map(str, choices_of(of_setting))) if isinstance(values, str) else ""
    return ValueError(f"`{name}` must be {describe_type(of_setting)}, but got {describe(values)}. {remedy}".rstrip())


def json_schema(kind: type) -> str:
    """Return the JSON schema of a dataclass of settings, with which editors check and complete files of them."""
    return json.dumps(_adapter(cast(Hashable, kind)).json_schema(), indent=2)


def _fields_of(kind: Any) -> list[str]:
    return [name for each in alternatives(kind) if is_dataclass(each) for name in kinds_of(each)]  # type: ignore[arg-type]


def _flat_names(values: Nested, before: str = "") -> Iterator[str]:
    """Yield the dotted names of nested settings."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat_names(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"
