"""Settings of a run from a YAML file, such as the `config.yaml` that every run writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from telecine.training.config import TrainConfig


def read_config(path: str | PathLike[str]) -> TrainConfig:
    """Return the settings in a YAML file; what it leaves out has its default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a setting is unknown or of another kind.
    """
    return config_from(yaml.safe_load(Path(path).read_text(encoding="utf-8")))


def config_from(settings: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of nested plain values, as they stand in YAML.

    Raises:
        ValueError: If a setting is unknown or of another kind.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    values = parser.instantiate(parser.parse_object(dict(settings)))
    return TrainConfig(**{item.name: values[item.name] for item in fields(TrainConfig)})
