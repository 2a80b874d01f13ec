"""Names of the files and folders in the folder of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

CONFIG_FILE = "config.yaml"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
METRICS_FILE = "metrics.jsonl"
VIDEO_FILE = "side_by_side.mp4"
CURVES_FILE = "curves.png"
CHECKPOINTS = "checkpoints"
# The names of checkpoints that were found damaged begin with this.
DAMAGED = "damaged-"
# Symbolic link to the checkpoint with the best validation, with `best_metric`.
BEST = "best"
VALIDATIONS = "validation"
CLIPS_FILE = "clips.json"
ENVIRONMENT_FILE = "environment.json"
HEALTH_FILE = "health.jsonl"
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"

_STEP_NAME = re.compile(r"step-(\d+)")


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint at `step`."""
    return run / CHECKPOINTS / checkpoint_name(step)


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of the checkpoint at `step`."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint from its folder's name."""
    return int(folder.name.removeprefix("step-"))


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every complete checkpoint of a run, oldest first."""
    folders = (run / CHECKPOINTS).glob("step-*")
    return _by_step(folder for folder in folders if is_checkpoint(folder))


def validation_folder(run: Path, step: int) -> Path:
    """Return the folder of the clips of the validation at `step`."""
    return run / VALIDATIONS / f"step-{step:08d}"


def validation_folders(run: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every validation with complete clips, oldest first."""
    folders = (run / VALIDATIONS).glob("step-*")
    return _by_step(folder for folder in folders if (folder / CLIPS_FILE).is_file())


def _by_step(folders: Iterable[Path]) -> list[tuple[int, Path]]:
    found = ((_STEP_NAME.fullmatch(folder.name), folder) for folder in folders)
    return sorted((int(match[1]), folder) for match, folder in found if match)


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint; it may be damaged."""
    return (folder / MANIFEST_FILE).is_file() or (folder / STATE_FILE).is_file()


def find_checkpoint(path: Path) -> Path | None:
    """Return `path` if it is a checkpoint, its last checkpoint if it is a run, otherwise None."""
    if is_checkpoint(path):
        return path
    found = checkpoints(path)
    return found[-1][1] if found else None
