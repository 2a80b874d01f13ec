"""The settings of several runs beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from telecine.runs import CONFIG_FILE
from telecine.shapes import argument_error

ABSENT = "not set"


@dataclass(frozen=True)
class Setting:
    """One setting in every run."""

    name: str
    """Dotted, as the command line has it."""
    values: list[str]
    """One for each run; `ABSENT` where a run does not have it."""

    @property
    def differs(self) -> bool:
        """Whether the runs do not agree."""
        return len(set(self.values)) > 1


def read_settings(run: Path) -> dict[str, str]:
    """Return the settings in a run's `config.yaml` by their dotted names, as text; nothing if there is no such file.

    Raises:
        ValueError: If the file holds no settings.
    """
    path = run / CONFIG_FILE
    if not path.exists():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        got = f"text that is not ({error})"
        raise argument_error(str(path), "YAML", got, "Take it from a checkpoint of the run.") from error
    if not isinstance(values, dict):
        raise argument_error(str(path), "a YAML mapping", values, "Take it from a checkpoint of the run.")
    return flat_settings(values)


def flat_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings by their dotted names, as text."""
    return dict(_flat(values, ""))


def side_by_side_settings(runs: Sequence[Mapping[str, str]]) -> list[Setting]:
    """Return every setting of any run, in the order of the first run that has it."""
    names = dict.fromkeys(name for settings in runs for name in settings)
    return [Setting(name, [settings.get(name, ABSENT) for settings in runs]) for name in names]


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)
