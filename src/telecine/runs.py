"""Where things lie in the folder of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from telecine.shapes import argument_error

CONFIG_FILE = "config.yaml"
STATE_FILE = "state.json"
METRICS_FILE = "metrics.jsonl"
VIDEO_FILE = "side_by_side.mp4"
CURVES_FILE = "curves.png"
CHECKPOINTS = "checkpoints"
# The autoencoder's averaged and raw weights, each a folder that `from_pretrained` loads.
Weights = Literal["ema", "model"]

_CHECKPOINT_NAME = re.compile(r"step-(\d+)")


def checkpoint_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step`."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every checkpoint of a run, oldest first; unfinished ones are not among them."""
    folders = (run / CHECKPOINTS).glob("step-*")
    found = ((_CHECKPOINT_NAME.fullmatch(folder.name), folder) for folder in folders if _is_checkpoint(folder))
    return sorted((int(match[1]), folder) for match, folder in found if match)


def _is_checkpoint(folder: Path) -> bool:
    return (folder / STATE_FILE).is_file()


def find_checkpoint(path: Path) -> Path | None:
    """Return `path` if it is a checkpoint, the last one of `path` if that is a run, else None."""
    if _is_checkpoint(path):
        return path
    found = checkpoints(path)
    return found[-1][1] if found else None


def find_model(path: str | Path, weights: Weights = "ema") -> Path:
    """Return the folder of the autoencoder's weights in a run, in a checkpoint, or `path` itself if it is one.

    Raises:
        ValueError: If `path` is none of these.
    """
    path = Path(path)
    checkpoint = find_checkpoint(path)
    if checkpoint is not None:
        return checkpoint / weights
    if not (path / "config.json").is_file():
        contract = "a run's folder, a checkpoint's, or one with config.json and model.safetensors"
        got = f"{str(path)!r}, which {'holds none of these' if path.is_dir() else 'is not a folder'}"
        raise argument_error("checkpoint", contract, got, "`telecine train` prints where its checkpoints are.")
    return path
