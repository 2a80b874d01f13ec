"""The settings in a checkpoint: how they are written, and which may change when a run resumes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias, cast

import yaml

from telecine.base.checks import argument_error, describe
from telecine.base.files import atomic_write
from telecine.report.settings import flat_settings, read_settings, side_by_side_settings
from telecine.runs.layout import CONFIG_FILE
from telecine.settings import ObjectiveConfig, TrainConfig
from telecine.settings.yaml_file import read_yaml

# Nested settings, as YAML has them.
Settings: TypeAlias = dict[str, Any]


def as_yaml(config: TrainConfig) -> str:
    """Return the settings as YAML that `--config` reads."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def _plain(config: TrainConfig) -> Settings:
    """Return the settings as they come back from a file: tuples become lists."""
    return cast(Settings, json.loads(json.dumps(asdict(config), default=_dotted_path)))


def _dotted_path(function: object) -> str:
    """Return the path from which a function among the settings, such as a term's, is imported again."""
    name = getattr(function, "__qualname__", "<none>")
    if "<" in name or getattr(function, "__module__", "__main__") == "__main__":
        remedy = "Move it to the top level of a module that can be imported."
        raise argument_error("a setting", "a plain value or an importable function", describe(function), remedy)
    return f"{function.__module__}.{name}"


def check_encoding(config: TrainConfig) -> None:
    """Check that a file can hold the settings: a path may have bytes that are not UTF-8.

    Raises:
        ValueError: It cannot.
    """
    for name, text in flat_settings(_plain(config)).items():
        if text.encode("utf-8", "ignore").decode("utf-8") != text:
            contract, remedy = "text in UTF-8, in which runs save their settings", "Rename it, or pass a link to it."
            raise argument_error(name, contract, repr(text), remedy)


def write_settings(folder: Path, config: TrainConfig) -> None:
    """Write the settings into the folder of a run or of a checkpoint, atomically."""
    text = as_yaml(config)
    atomic_write(folder / CONFIG_FILE, lambda partial: partial.write_text(text, encoding="utf-8"))


def saved_settings(folder: Path) -> Settings:
    """Return the settings that a checkpoint was written with."""
    return cast(Settings, read_yaml(folder / CONFIG_FILE))


def changed_settings(config: TrainConfig, folder: Path) -> list[str]:
    """Return "name old -> new" for each setting that differs from a checkpoint's, but for the model and the folder."""
    settings = side_by_side_settings([read_settings(folder), flat_settings(_plain(config))])
    return [
        f"{setting.name} {setting.values[0]} -> {setting.values[1]}"
        for setting in settings
        if setting.differs and setting.name not in ("model", "output_dir")
    ]


def check_same_data(config: TrainConfig, folder: Path) -> None:
    """Check that the settings name the data of a checkpoint: another data set is rarely meant to continue a run.

    Raises:
        ValueError: `data` differs.
    """
    saved = saved_settings(folder)["data"]
    if saved is None or config.data is None:
        is_same = saved is config.data
    else:
        is_same = os.path.realpath(saved) == os.path.realpath(config.data)
    if not is_same:
        remedy = "Use another --output_dir for another run, or add --change_data to train this one on other data."
        raise argument_error("data", f"{saved!r} as in {folder}", repr(config.data), remedy)


def check_same_networks(config: TrainConfig, folder: Path) -> None:
    """Check that the settings build the networks of a checkpoint.

    Raises:
        ValueError: A setting differs that changes the networks.
    """
    settings = saved_settings(folder)
    if "gan" not in settings["objective"]:
        contract, got = "a new folder or a run of this version", f"{folder}, written by telecine 0.1"
        raise argument_error("output_dir", contract, got, "Use another --output_dir.")
    saved = network_settings(_plain(TrainConfig())) | network_settings(settings)  # an older version lacks new settings
    for name, value in network_settings(_plain(config)).items():
        if saved.get(name) != value:
            remedy = "Use the previous value, or another --output_dir."
            raise argument_error(name, f"{saved.get(name)!r} as in {folder}", describe(value), remedy)


def network_settings(settings: Settings) -> Settings:
    """Return the settings that decide which weights exist, and their shapes, by their dotted names."""
    networks = {
        f"{group}.{name}": value
        for group in ("causal_vae", "discriminator", "trainable")
        for name, value in settings[group].items()
    }
    networks.pop("discriminator.init", None)  # where they started; they are now those of the checkpoint
    # The path of a base model may change. `check_same_architecture` compares the models once they are loaded.
    networks["model"] = "left out" if settings["model"] is None else "given"
    # The discriminators' linear heads depend on the size of the clips, and only discriminators with a weight are built.
    clips = {f"clips.{name}": settings["clips"][name] for name in ("num_frames", "height", "width")}
    # The weights that decide which discriminators exist, and whether averages of their logits are saved.
    # Plain values: functions of the user's that a saved file names are not imported.
    objective = settings["objective"]
    saved = [term.setting for term in ObjectiveConfig().all_terms().values() if term.is_saved]
    are_on = {f"objective.{name} > 0": _is_ever_on(_value_at(objective, name)) for name in saved}
    learned = {"objective.reconstruction.learn_logvar": objective["reconstruction"]["learn_logvar"]}
    return networks | clips | are_on | learned


def _value_at(settings: Settings, name: str) -> Any:
    """Return the value of a dotted name in nested plain settings."""
    return reduce(lambda group, part: group[part], name.split("."), settings)


def _is_ever_on(weight: float | Settings) -> bool:
    """Return whether a weight, or a ramp as YAML has it, is above 0 at any step."""
    return any(weight.get(name, 0) > 0 for name in ("weight", "initial")) if isinstance(weight, dict) else weight > 0
