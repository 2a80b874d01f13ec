"""Checkpoints: a folder each, which appears whole or not at all, and holds no pickled objects."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from telecine.runs import CHECKPOINTS, checkpoint_folder, checkpoints
from telecine.shapes import argument_error


def write_checkpoint(run: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Let `write` fill a folder aside, flush it to disk, rename it to its place, and delete all but the last `keep`.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoint_folder(run, step)
    aside = final.with_name(f".{final.name}.partial")
    _remove_leftovers(run)
    aside.mkdir(parents=True)
    write(aside)
    _flush(aside)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        os.replace(final, replaced)
    os.replace(aside, final)
    if replaced.exists():
        shutil.rmtree(replaced)
    for _, old in checkpoints(run)[:-keep]:
        _delete(old)
    return final


def _remove_leftovers(run: Path) -> None:
    for leftover in (run / CHECKPOINTS).glob(".step-*"):
        shutil.rmtree(leftover)


def _delete(folder: Path) -> None:
    """Take a checkpoint out of sight first, so that one deleted half way is never mistaken for a whole one."""
    hidden = folder.with_name(f".{folder.name}.deleted")
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return what `save_tensors` wrote.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        remedy = f"Delete {path.parent}: the run goes on from the checkpoint before, if there is one."
        raise argument_error(str(path), "a whole safetensors file", f"{error}", remedy) from error


def save_optimizer(optimizer: Optimizer, path: Path) -> None:
    """Write the tensors that an optimizer has gathered; its settings are the run's."""
    state = optimizer.state_dict()["state"]
    save_tensors(
        path,
        {
            f"{index}.{name}": torch.as_tensor(value)
            for index, values in state.items()
            for name, value in values.items()
        },
    )


def load_optimizer(optimizer: Optimizer, path: Path) -> None:
    """Restore what `save_optimizer` wrote into an optimizer of the same parameters, which keeps its settings."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_tensors(path).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> dict[str, Tensor]:
    """Return the state of PyTorch's generators, by device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda.{index}": rng for index, rng in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Restore what `random_state` returned, for the devices that are there."""
    torch.set_rng_state(state["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in state:
            torch.cuda.set_rng_state(state[f"cuda.{index}"], index)
