"""What a run records of its environment: packages, machine, device, and the revision of the code."""

import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# Linux names the processor there; `platform.processor()` has its architecture.
CPU_INFO = Path("/proc/cpuinfo")
_PACKAGES = (
    "telecine",
    "torch",
    "torchvision",
    "torchmetrics",
    "accelerate",
    "diffusers",
    "av",
    "pydantic",
)


def environment(device: torch.device) -> dict[str, str]:
    """Return package versions, machine, device, and the git revision of the current folder if it has one."""
    values = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            values[name] = version(name)
    values["platform"] = platform.platform()
    values["device"] = device_name(device)
    values["threads"] = str(torch.get_num_threads())
    revision = git_revision(Path.cwd())
    if revision:
        values["git revision"] = revision
    return values


def git_revision(folder: Path) -> str:
    """Return the commit of a folder, with "+ changes" if tracked files were changed; "" without a repository."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision and _git(folder, "status", "--porcelain", "--untracked-files=no"):
        revision += " + changes"
    return revision


def _git(folder: Path, *arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # otherwise `status` writes the index
    command = [git, "-c", "core.fsmonitor=false", *arguments]  # a program that the repository names
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor and how many cores it has."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (cuda)"
    if device.type == "cpu":
        return f"{_processor_name()}, {os.cpu_count()} cores (cpu)"
    return device.type


def _processor_name() -> str:
    if CPU_INFO.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", CPU_INFO.read_text("utf-8"), re.MULTILINE)
        if names:
            return str(names[0])
    return platform.processor() or platform.machine()
