"""Checkpoints: a folder each, which appears whole or not at all, and holds no pickled objects."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from telecine.autoencoders.pretrained import safetensors_write
from telecine.runs import BEST, CHECKPOINTS, checkpoint_folder, checkpoints
from telecine.shapes import argument_error
from telecine.training.ranks import all_gathered
from telecine.training.sharding import gathered, scattered


def write_checkpoint(
    run: Path, step: int, write: Callable[[Path], None], *, keep: int, best: int | None = None
) -> Path:
    """Let `write` fill a folder aside, flush it to disk, rename it to its place, and delete older ones.

    Args:
        run: The run's folder.
        step: Number of updates done.
        write: Fills the folder that it is given.
        keep: How many checkpoints stay, the newest ones.
        best: The step of one that stays whatever its age; `BEST` in the run's folder leads to it, and to none where it
            is not asked for.

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
    if best is not None:
        point_to(run / BEST, checkpoint_folder(run, best))
    elif (run / BEST).is_symlink():
        (run / BEST).unlink()
    for old_step, old in checkpoints(run)[:-keep]:
        if old_step != best:
            _delete(old)
    return final


def point_to(link: Path, folder: Path) -> None:
    """Let `link` lead to `folder`, a neighbour or below one, whatever it led to before.

    A folder in its place, which a copy without links has made of one, is removed.
    """
    aside = link.with_name(f".{link.name}.partial")
    aside.unlink(missing_ok=True)
    aside.symlink_to(folder.relative_to(link.parent), target_is_directory=True)
    if link.is_dir() and not link.is_symlink():
        _delete(link)
    os.replace(aside, link)


def _remove_leftovers(run: Path) -> None:
    for leftover in (run / CHECKPOINTS).glob(".step-*"):
        shutil.rmtree(leftover)


def _delete(folder: Path) -> None:
    """Take a checkpoint out of sight first, so that one deleted half way is never mistaken for a whole one."""
    hidden = folder.with_name(f".{folder.name}.deleted")
    if hidden.exists():  # as of one that was deleted half way
        shutil.rmtree(hidden)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_whole(folder: Path) -> None:
    """Raise a `ValueError` if one of a checkpoint's files is damaged, as by a disk that was full or a copy cut off."""
    for path in sorted(folder.rglob("*")):
        _check_whole_file(path, folder)


def _check_whole_file(path: Path, folder: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # reads what should be there, and sees whether it is
                pass
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".yaml" and not isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict):
            raise ValueError("no settings in it")
    except (SafetensorError, ValueError, yaml.YAMLError) as error:
        raise _damaged(path, folder, error) from error


def _damaged(path: Path, folder: Path, error: Exception) -> Exception:
    remedy = f"Delete {folder}: the run goes on from the checkpoint before, if there is one."
    return argument_error(str(path), "a whole file", f"a damaged one ({error})", remedy)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors.

    Raises:
        OSError: If the file cannot be written.
    """
    with safetensors_write(path):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return what `save_tensors` wrote.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, path.parent, error) from error


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the tensors that an optimizer has gathered, by parameter and name; its settings are the run's.

    Where they are sharded, every process has to call this.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": gathered(torch.as_tensor(value))
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: Optimizer, path: Path) -> None:
    """Restore `optimizer_tensors` from a file into an optimizer of the same parameters, which keeps its settings.

    Where the parameters are sharded, so are the tensors that belong to them.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_tensors(path).items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        belongs = tensor.shape == parameter.shape and tensor.ndim > 0
        state.setdefault(int(index), {})[name] = scattered(tensor, like=parameter) if belongs else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the state of PyTorch's generators on every process, by rank and device; every process has to call this."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    return {
        f"{rank}.{name}": state.cpu()
        for name, mine in own.items()
        for rank, state in enumerate(all_gathered(mine.to(device)))
    }


def set_random_state(states: Mapping[str, Tensor], rank: int, device: torch.device) -> None:
    """Restore this process' part of what `random_states` returned; a process that was not there keeps its own."""
    if f"{rank}.cpu" in states:
        torch.set_rng_state(states[f"{rank}.cpu"])
    if f"{rank}.cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states[f"{rank}.cuda"], device)
