"""Settings and environments of runs, and how they differ."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from telecine.base.checks import argument_error
from telecine.base.files import read_json, write_json
from telecine.runs.layout import CONFIG_FILE, ENVIRONMENT_FILE
from telecine.settings.yaml_file import read_yaml

ABSENT = "not set"
PACKAGES = ("telecine", "torch", "torchvision", "torchmetrics", "accelerate", "diffusers", "av", "jsonargparse")


@dataclass(frozen=True)
class Setting:
    """One setting of several runs."""

    name: str
    """The dotted name, as on the command line."""
    values: list[str]
    """One value per run; `ABSENT` for a run without this setting."""

    @property
    def differs(self) -> bool:
        """Whether the runs have different values."""
        return len(set(self.values)) > 1


def read_settings(run: Path) -> dict[str, str]:
    """Return the settings in a run's `config.yaml` as text by dotted name, or nothing if the file does not exist.

    Raises:
        ValueError: The file is not a YAML mapping.
    """
    path = run / CONFIG_FILE
    if not path.exists():
        return {}
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise argument_error(str(path), "a YAML mapping", values, "Copy the file from a checkpoint of the run.")
    return flat_settings(values)


def flat_settings(values: Mapping[str, object]) -> dict[str, str]:
    """Return nested settings as text by dotted name."""
    return dict(_flatten(values, ""))


def perceptual_net(settings: Mapping[str, str]) -> str | None:
    """Return the network of the perceptual loss from a run's settings as text, or None if they do not say."""
    name = "objective.perceptual.net"
    return settings.get(name) or settings.get(f"{name}.target")


def _flatten(values: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)


def side_by_side_settings(runs: Sequence[Mapping[str, str]], absent: str = ABSENT) -> list[Setting]:
    """Return all settings of all runs, in the order of the first run that has each; `absent` if a run has not."""
    names = dict.fromkeys(name for settings in runs for name in settings)
    return [Setting(name, [settings.get(name, absent) for settings in runs]) for name in names]


def environment(device: torch.device) -> dict[str, str]:
    """Return package versions, machine, device, and the git revision of the current folder if it has one."""
    values = {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "device": _device_name(device),
        "threads": str(torch.get_num_threads()),
        "git revision": git_revision(Path.cwd()),
    }
    return {name: value for name, value in values.items() if value}


def write_environment(run: Path, device: torch.device) -> None:
    """Write the environment of this process into `environment.json` in a run's folder."""
    write_json(run / ENVIRONMENT_FILE, environment(device))


def read_environment(run: Path) -> dict[str, str]:
    """Return what `write_environment` wrote, or nothing if the file does not exist.

    Raises:
        ValueError: The file is damaged.
    """
    path = run / ENVIRONMENT_FILE
    return {name: str(value) for name, value in read_json(path).items()} if path.exists() else {}


def git_revision(folder: Path) -> str:
    """Return the commit of a folder, with "+ changes" if tracked files were changed; "" without a repository."""
    revision = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if revision else ""
    return f"{revision} + changes" if changes else revision


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of git, or "" if git is not installed or fails."""
    git = shutil.which("git")
    if git is None:
        return ""
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # otherwise `status` writes the index
    command = [git, "-c", "core.fsmonitor=false", *arguments]  # a program that the repository names
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (cuda)"
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores (cpu)"
    return device.type
