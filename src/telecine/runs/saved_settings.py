"""The settings of a run: as its folder and its checkpoints hold them, as text by name, and beside those of others."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from pydantic.dataclasses import is_pydantic_dataclass

from telecine.base.checks import argument_error, describe
from telecine.base.files import write_text
from telecine.base.yaml_files import parse_yaml, read_yaml
from telecine.settings.parse import flat_items
from telecine.settings.upgrade import upgrade_run

SETTINGS_FILE = "config.yaml"


class SettingOfRuns(NamedTuple):
    """One setting, by its dotted name, of several runs, with a value for each."""

    name: str
    values: list[str]
    differs: bool


def read_saved_settings(folder: Path) -> dict[str, Any]:
    """Return the plain, nested settings in the folder of a run or of a checkpoint, or nothing without the file.

    Settings of an older version are those with which a run of this one does the same, see `upgrade_run`.

    Raises:
        ValueError: The file is damaged.
    """
    return upgrade_run(read_settings_as_saved(folder))


def read_settings_as_saved(folder: Path) -> dict[str, Any]:
    """Return what `read_saved_settings` returns, but settings of an older version as it has saved them.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / SETTINGS_FILE
    values = read_yaml(path) if path.exists() else {}
    if not isinstance(values, dict):
        raise argument_error(
            str(path), "a YAML mapping", values, "Copy the file from a checkpoint of the run."
        )
    return values


def write_settings(folder: Path, settings: object) -> None:
    """Write settings into the folder of a run or of a checkpoint, atomically."""
    write_text(folder / SETTINGS_FILE, as_yaml(settings))


class _Dumper(yaml.SafeDumper):
    """Quotes text that `read_yaml`, which reads YAML 1.2, takes for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if parse_yaml(text) == text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def as_yaml(settings: object) -> str:
    """Return settings as the text of a file that `read_config` reads."""
    return yaml.dump(plain_settings(settings), Dumper=_Dumper, sort_keys=False)


def plain_settings(settings: object) -> dict[str, Any]:
    """Return settings as they come back from a file: tuples become lists."""
    return cast(dict[str, Any], json.loads(json.dumps(_plain(settings, ""))))


def _plain(value: object, setting: str) -> object:
    """Return a group of settings as a dict, and a function, such as a term's, as the path that imports it again.

    Args:
        value: The group, or a value in it.
        setting: The dotted name of the value.

    Raises:
        ValueError: A value is neither plain nor importable.
    """
    if is_pydantic_dataclass(type(value)):
        value = {item.name: getattr(value, item.name) for item in fields(value)}  # type: ignore[arg-type]
    if isinstance(value, dict):
        group = {}
        for name, item in value.items():
            group[name] = _plain(item, f"{setting}.{name}" if setting else str(name))
        return group
    if isinstance(value, list | tuple):
        return [_plain(item, setting) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    path = _path_of(value)
    if path is None:
        contract = "a plain value or an importable function"
        remedy = (
            "Move it to the top level of a module that can be imported, and pass its dotted path."
        )
        raise argument_error(setting or "a setting", contract, describe(value), remedy)
    return path


def _path_of(value: object) -> str | None:
    """Return the dotted path of a function or a class, or of a GAN loss or the like; None if it cannot be imported."""
    name = getattr(value, "__qualname__", None)
    if name is None:
        return _path_of_instance(value) if is_dataclass(value) else None
    module = getattr(value, "__module__", "__main__")
    return None if module == "__main__" or "<" in name else f"{module}.{name}"


def _path_of_instance(value: Any) -> str | None:
    """Return the dotted path of a module's variable that is an instance; None if there is none.

    The modules that define the functions in its fields come first: others may have imported it from there.
    """
    modules = []
    for item in fields(value):
        function = getattr(value, item.name)
        while isinstance(function, partial):
            function = function.func
        modules.append(getattr(function, "__module__", None))
    for module in [*modules, *sys.modules]:
        if module in (None, "__main__", "__mp_main__"):
            continue
        variables = getattr(sys.modules.get(module), "__dict__", {})
        for name, variable in list(variables.items()):
            if variable is value:
                return f"{module}.{name}"
    return None


def check_encoding(settings: object) -> None:
    """Check that a file can hold the settings.

    Raises:
        ValueError: A text, such as a path, has bytes that are not UTF-8.
    """
    for name, text in flat_settings(plain_settings(settings)).items():
        if text.encode("utf-8", "ignore").decode("utf-8") != text:
            contract = "text in UTF-8, in which runs save their settings"
            remedy = "Rename it, or pass a link to it."
            raise argument_error(name, contract, repr(text), remedy)


def flat_settings(values: Mapping[str, object]) -> dict[str, str]:
    """Return nested settings as text by dotted name."""
    texts = {}
    for name, value in flat_items(values):
        texts[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return texts


def side_by_side_settings(
    runs: Sequence[Mapping[str, str]], absent: str = "not set"
) -> list[SettingOfRuns]:
    """Return all settings of all runs, in the order of the first run that has each; `absent` if a run has not."""
    names = dict.fromkeys(name for settings in runs for name in settings)
    rows = []
    for name in names:
        values = [settings.get(name, absent) for settings in runs]
        rows.append(SettingOfRuns(name, values, differs=len(set(values)) > 1))
    return rows
