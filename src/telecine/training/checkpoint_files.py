"""Files of a checkpoint: a folder that appears complete or not at all, and tensors in it without pickle."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from telecine.autoencoders.pretrained import safetensors_write
from telecine.base.files import flush, partial_path
from telecine.runs.layout import BEST, CHECKPOINTS, CLIPS_FILE, DAMAGED, VALIDATIONS, checkpoint_folder, checkpoints
from telecine.runs.manifest import DamagedError, damage_of, write_manifest
from telecine.training.distributed import all_gather, is_sharded, local_shard
from telecine.training.shards import SavedTensors, damage_named
from telecine.training.state import parameters_of

# No file in a run's folder takes longer to write. `telecine report` writes there while the run trains.
SECONDS_TO_WRITE = 3600.0


def begin_checkpoint(run: Path, step: int) -> Path:
    """Create a temporary folder for the files of the checkpoint at `step`, and return it."""
    temporary = partial_path(checkpoint_folder(run, step))
    _remove_partial_checkpoints(run)
    temporary.mkdir(parents=True)
    return temporary


def finish_checkpoint(
    run: Path,
    step: int,
    temporary: Path,
    *,
    keep: int,
    best: int | None = None,
    known: Mapping[Path, str] | None = None,
) -> Path:
    """Flush the files of a checkpoint to disk, rename their temporary folder, and delete older checkpoints.

    Args:
        run: The run's folder.
        step: Number of updates done.
        temporary: The folder that `begin_checkpoint` returned, with all files.
        keep: Number of checkpoints to keep, the newest ones.
        best: The step of a checkpoint to keep at any age. The link `BEST` in the run's folder points to it; without
            `best` the link is removed.
        known: The digests of files that other processes have written.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoint_folder(run, step)
    for path in temporary.rglob("*.safetensors"):
        check_header(path)
    write_manifest(temporary, step, known)
    flush([*temporary.rglob("*"), temporary])
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        os.replace(final, replaced)
    os.replace(temporary, final)
    flush([final.parent, run])
    if replaced.exists():
        shutil.rmtree(replaced)
    _keep_newest(run, keep=keep, best=best)
    return final


def tidy(run: Path, *, keep: int, best: int | None) -> None:
    """Remove what is left of interrupted writes, point the link `BEST` to the best checkpoint, and delete old ones.

    For the start of a run: what it is writing just then would be removed as well.
    """
    remove_leftovers(run)
    _keep_newest(run, keep=keep, best=best)


def _keep_newest(run: Path, *, keep: int, best: int | None) -> None:
    if best is not None:
        point_to(run / BEST, checkpoint_folder(run, best))
    elif (run / BEST).is_symlink():
        (run / BEST).unlink()
    for old_step, old in checkpoints(run)[:-keep]:
        if old_step != best:
            _delete(old)


def newest_intact(run: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose files are those that were written, and notes about damaged newer ones.

    These are moved aside, to names that begin with `DAMAGED`.

    Raises:
        DamagedError: There are checkpoints, but all are damaged. They stay where they are.
    """
    damaged: dict[Path, DamagedError] = {}
    for _, folder in reversed(checkpoints(run)):
        error = damage_of(folder)
        if error is None:
            return folder, [f"{each} It is now {set_aside(bad)}." for bad, each in damaged.items()]
        damaged[folder] = error
    if damaged:
        remedy = f"To start again, move {run / CHECKPOINTS} away."
        raise DamagedError(f"No checkpoint of {run} is intact. {' '.join(map(str, damaged.values()))} {remedy}")
    return None, []


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it no longer counts as one, and return its new path."""
    taken = {path.name for path in folder.parent.iterdir()}
    names = (f"{DAMAGED}{folder.name}" + (f"-{number}" if number else "") for number in range(len(taken) + 1))
    aside = folder.with_name(next(name for name in names if name not in taken))
    os.replace(folder, aside)
    return aside


def point_to(link: Path, folder: Path) -> None:
    """Make `link` a relative symbolic link to `folder`, which is below the folder of the link. Replace an old link.

    A folder in place of the link is removed: copying a run without symbolic links creates one.
    """
    temporary = partial_path(link)
    temporary.symlink_to(folder.relative_to(link.parent), target_is_directory=True)
    if link.is_dir() and not link.is_symlink():
        _delete(link)
    os.replace(temporary, link)


def remove_leftovers(run: Path) -> None:
    """Remove what an interrupted write or deletion has left."""
    _remove_partial_checkpoints(run)
    for leftover in run.glob(".*.partial"):
        if time.time() - leftover.lstat().st_mtime > SECONDS_TO_WRITE:
            leftover.unlink()
    for folder in (run / VALIDATIONS).iterdir() if (run / VALIDATIONS).is_dir() else ():
        is_complete = (folder / CLIPS_FILE).is_file() and not folder.name.startswith(".")
        if folder.is_dir() and not is_complete:
            shutil.rmtree(folder)


def _remove_partial_checkpoints(run: Path) -> None:
    for leftover in (run / CHECKPOINTS).glob(".step-*"):
        shutil.rmtree(leftover)


def _delete(folder: Path) -> None:
    """Rename a folder, then delete it, so that a partly deleted checkpoint is not mistaken for a complete one."""
    hidden = folder.with_name(f".{folder.name}.deleted")
    if hidden.exists():  # an earlier deletion was interrupted
        shutil.rmtree(hidden)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def check_header(path: Path) -> None:
    """Check that a safetensors file has the size that its header states.

    Raises:
        OSError: It has not; the disk may be full.
    """
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise OSError(f"{path} was not written whole: {error}") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors.

    Raises:
        OSError: The file cannot be written.
    """
    with safetensors_write(path):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_tensors` wrote.

    Raises:
        DamagedError: The file is missing or damaged.
    """
    with damage_named(path):
        return load_file(path)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state by "index of the parameter.name"; its hyperparameters are settings of the run."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()
    }


@torch.no_grad()
def load_optimizer(optimizer: Optimizer, saved: SavedTensors) -> None:
    """Load what `optimizer_tensors` returned into an optimizer of the same parameters, which keeps its hyperparameters.

    Tensors of a parameter's shape are sharded as the parameter is.
    """
    parameters = parameters_of(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, whole in saved.whole.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        is_elementwise = whole.shape == parameter.shape and whole.ndim > 0
        tensor = saved.read(key, like=parameter if is_elementwise else None)
        if is_elementwise and is_sharded(parameter):
            shard, tensor = tensor, torch.empty_like(parameter, dtype=tensor.dtype)
            local_shard(tensor).copy_(shard)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of PyTorch's global generators by "rank.device"; every process has to call this."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        f"{rank}.{name}": gathered.cpu()
        for name, state in states.items()
        for rank, gathered in enumerate(all_gather(state.to(device)))
    }


def set_random_state(states: Mapping[str, Tensor], rank: int, device: torch.device) -> None:
    """Restore this process' part of `random_states`. A rank that is not in `states` keeps its present state."""
    if f"{rank}.cpu" in states:
        torch.set_rng_state(states[f"{rank}.cpu"])
    if f"{rank}.cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states[f"{rank}.cuda"], device)
