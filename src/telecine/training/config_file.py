"""Settings of a run from a YAML file, such as the `config.yaml` that every run writes."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from telecine.shapes import argument_error
from telecine.training.config import TrainConfig


def read_config(path: str | PathLike[str]) -> TrainConfig:
    """Return the settings in a YAML file; what it leaves out has its default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a setting is unknown or of another kind.
    """
    return config_from(yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})


def config_from(settings: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of nested plain values, as they stand in YAML.

    Raises:
        ValueError: If a setting is unknown or of another kind.
    """
    if not isinstance(settings, Mapping):
        raise argument_error("settings", "`key: value` lines", settings, "Write one setting a line.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    try:
        parsed = parser.parse_object(dict(settings))
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    check_groups(TrainConfig, parsed)
    values = parser.instantiate(parsed)
    return TrainConfig(**{item.name: values[item.name] for item in fields(TrainConfig)})


def check_groups(options: type, settings: Namespace) -> None:
    """Raise a `ValueError` where one value stands for a whole group of settings."""
    for name, kind in get_type_hints(options).items():
        if is_dataclass(kind) and not isinstance(settings[name], Namespace):
            raise argument_error(name, "a group of settings", settings[name], "Indent `key: value` lines below it.")
