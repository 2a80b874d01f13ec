"""Settings of a run from a YAML file: the `config.yaml` that every run writes, or a recipe."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from os import PathLike
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from telecine.base.checks import argument_error
from telecine.base.imports import allow_code, allowed_code, not_allowed_error
from telecine.cli.argument_errors import plain, setting_names
from telecine.settings.recipes import find_recipe
from telecine.settings.yaml_file import read_yaml
from telecine.training.config import TrainConfig

# How jsonargparse says that a value must not be imported, and which setting it is about.
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
# An error of telecine's own among the reasons why a value is of none of the types of a setting.
_OWN = re.compile(r"Errors: .*?(`[\w.]+` must be .*?) Given value type: ")
_SETTING = re.compile(r'(?:key|argument|option) ["\']([\w.]+)["\']')


def read_config(path: str | PathLike[str], *others: str | PathLike[str]) -> TrainConfig:
    """Return the settings in a YAML file, or of a recipe, such as "demo" for a CPU or "gpu" for training from scratch.

    Of several files, later ones override earlier ones: `read_config("wan2.1", "decoder", "24gb")`. Settings that they
    leave out have their defaults. Change some with `dataclasses.replace`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a setting is unknown or of the wrong type.
    """
    return config_from(*(read_yaml(find_recipe(each)) or {} for each in (path, *others)))


def config_from(*settings: Mapping[str, Any]) -> TrainConfig:
    """Return the settings in nested plain values, as YAML has them; later ones override earlier ones.

    Raises:
        ValueError: If a setting is unknown or of the wrong type.
    """
    restrict_imports()
    parser = _parser()
    try:
        parsed = parser.get_defaults()
        for each in settings:
            if not isinstance(each, Mapping):
                raise argument_error("settings", "`key: value` lines", each, "Write one setting per line.")
            parsed = parser.parse_object(dict(each), parsed)
            check_groups(TrainConfig, parsed)
        values = parser.instantiate(parsed)
    except (ArgumentError, ValueError) as error:
        known = list(setting_names(TrainConfig))
        raise ValueError(plain(clear_message(error), TrainConfig, known=known, prefix="")) from error
    return TrainConfig(**{item.name: values[item.name] for item in fields(TrainConfig)})


@cache
def _parser() -> ArgumentParser:
    """Return the parser of `TrainConfig`; building it takes longer than parsing."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    return parser


def restrict_imports(allowed: Iterable[str] = ()) -> None:
    """Let jsonargparse import only what settings may name, in all parsers of the process; also what is in `allowed`."""
    allow_code(*allowed)
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=allowed_code(),
        instantiate_subclass_spec_in_any=False,
    )


def clear_message(error: Exception) -> str:
    """Return an error's message in one line, and in telecine's words if it is about code that settings name."""
    message = " ".join(str(error).split())
    if found := _OWN.search(message):
        return found[1]
    denied, setting = _DENIED.search(message), _SETTING.search(message)
    if denied is None:
        return message
    return str(not_allowed_error(setting[1] if setting else "a setting", denied[1]))


def check_groups(options: type, settings: Namespace) -> None:
    """Raise a `ValueError` if a single value is given for a group of settings."""
    for name, kind in get_type_hints(options).items():
        if is_dataclass(kind) and not isinstance(settings[name], Namespace):
            raise argument_error(name, "a group of settings", settings[name], "Indent `key: value` lines below it.")
