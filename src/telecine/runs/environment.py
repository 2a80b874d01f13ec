"""What a run records of its environment: packages, machine, device, and the revision of the code."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path

import torch

_PACKAGES = ("telecine", "torch", "torchvision", "torchmetrics", "accelerate", "diffusers", "av", "pydantic")


def environment(device: torch.device) -> dict[str, str]:
    """Return package versions, machine, device, and the git revision of the current folder if it has one."""
    values = {
        "python": platform.python_version(),
        **{name: found.version for name in _PACKAGES for found in islice(distributions(name=name), 1)},
        "platform": platform.platform(),
        "device": _device_name(device),
        "threads": str(torch.get_num_threads()),
        "git revision": _git_revision(Path.cwd()),
    }
    return {name: value for name, value in values.items() if value}


def _git_revision(folder: Path) -> str:
    """Return the commit of a folder, with "+ changes" if tracked files were changed; "" without a repository."""
    git = shutil.which("git")
    if git is None:
        return ""
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # otherwise it writes the index
    command = [git, "-c", "core.fsmonitor=false"]  # a program that the repository names
    command += ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= + changes"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (cuda)"
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores (cpu)"
    return device.type
