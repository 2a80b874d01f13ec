"""What a run was computed with: versions, device, revision."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from telecine.files import read_json, write_json
from telecine.runs import ENVIRONMENT_FILE

PACKAGES = ("telecine", "torch", "torchvision", "torchmetrics", "accelerate", "diffusers", "av", "jsonargparse")


def environment(device: torch.device) -> dict[str, str]:
    """Return versions, machine and device by name, and the git revision where the current folder has one."""
    stated = {
        "python": platform.python_version(),
        **{package: number for package in PACKAGES if (number := _version(package))},
        "platform": platform.platform(),
        "device": _device_name(device),
        "threads": str(torch.get_num_threads()),
        "git revision": git_revision(Path.cwd()),
    }
    return {name: value for name, value in stated.items() if value}


def write_environment(run: Path, device: torch.device) -> None:
    """Write `environment.json` into a run's folder, of the process that calls it."""
    write_json(run / ENVIRONMENT_FILE, environment(device))


def read_environment(run: Path) -> dict[str, str]:
    """Return what `write_environment` wrote, or nothing where a run has none.

    Raises:
        ValueError: If the file was damaged.
    """
    path = run / ENVIRONMENT_FILE
    return {name: str(value) for name, value in read_json(path).items()} if path.exists() else {}


def git_revision(folder: Path) -> str:
    """Return the commit that a folder stands on, with "+ changes" if files differ from it; "" outside git."""
    revision = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if revision else ""
    return f"{revision} + changes" if changes else revision


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints, nothing where there is no git or it refuses."""
    git = shutil.which("git")
    if git is None:
        return ""
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # `status` would write its index
    done = subprocess.run([git, *arguments], cwd=folder, env=quiet, capture_output=True, text=True, check=False)
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
