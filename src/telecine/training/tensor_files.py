"""Tensors of a checkpoint: their copies in memory, their files, the shards of several processes, random states."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.safetensors_files import load_safetensors
from telecine.models.pretrained import safetensors_write, without_shared_memory
from telecine.runs import DamagedError
from telecine.training.distributed import (
    all_gather,
    copy_whole,
    is_sharded,
    local_shard,
    shard_offsets,
)

# The names of the raw and of the averaged weights in a checkpoint.
MODEL = "model"
EMA = "ema"
# The file with the state dict of the objective.
OBJECTIVE_FILE = "objective.safetensors"
# The subfolder of a checkpoint for the files of shards.
SHARDS = "shards"
# The keys by which PyTorch's `HuggingFaceStorageReader` finds where a shard begins.
_SHARDING_INFO = "DCP_SHARDING_INFO"
_OFFSETS = "saved_offsets"


class HostCopy:
    """Copies of tensors in the memory of the host: the shards of this process, and in the main one all whole tensors.

    It keeps its memory for the next copy, as allocating takes longer than copying.
    """

    def __init__(self, *, is_main: bool) -> None:
        self.is_main = is_main
        self.tensors: dict[str, Tensor] = {}
        # Where each copy begins in the whole tensor, in each dimension.
        self.offsets: dict[str, list[int]] = {}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the copies. A name has the same shape and dtype in each call."""
        previous = self.tensors
        self.tensors = {}
        self.offsets = {}
        for name, tensor in tensors.items():
            if not self.is_main and not is_sharded(tensor):
                continue
            shard = local_shard(tensor)
            memory = previous.get(name)
            if memory is None:
                memory = torch.empty_like(
                    shard, device="cpu", memory_format=torch.contiguous_format
                )
            self.tensors[name] = memory.copy_(shard)
            self.offsets[name] = shard_offsets(tensor)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors, or raise an `OSError`."""
    with safetensors_write(path):
        save_file(
            {
                name: tensor.cpu().contiguous()
                for name, tensor in without_shared_memory(tensors).items()
            },
            path,
        )


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_tensors` wrote; raise a `DamagedError` if the file is missing or damaged."""
    with _damage_named(path):
        return load_safetensors(path)


def check_headers(folder: Path) -> None:
    """Check that safetensors files have the sizes in their headers: the disk may be full.

    Raises:
        OSError: A file below the folder was not written whole.
    """
    path = folder
    try:
        for path in folder.rglob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
    except SafetensorError as error:
        raise OSError(f"{path} was not written whole: {error}") from error


def shard_file(folder: Path, rank: int, num_ranks: int) -> Path:
    """Return the file in which a process writes its shards.

    Args:
        folder: The folder of the checkpoint.
        rank: The rank of the process.
        num_ranks: The number of processes.
    """
    return folder / SHARDS / f"shard-{rank:05d}-of-{num_ranks:05d}.safetensors"


def save_shards(path: Path, groups: Mapping[str, HostCopy]) -> None:
    """Write the copies of this process as "name of the group.name of the tensor".

    The file has the format of PyTorch's `HuggingFaceStorageWriter(save_distributed=True)`. That class is not used: it
    holds all bytes of a file a second time (101 MiB for a file of 100 MiB), and the processes wait for each other.
    """
    tensors = {}
    offsets = {}
    for group, copy in groups.items():
        for name, tensor in copy.tensors.items():
            tensors[f"{group}.{name}"] = tensor
            offsets[f"{group}.{name}"] = {_OFFSETS: copy.offsets[name]}
    path.parent.mkdir(exist_ok=True)
    with safetensors_write(path):
        # One key: safetensors would write several in another order each time.
        save_file(tensors, path, {_SHARDING_INFO: json.dumps(offsets)})


def saved_tensors(folder: Path, group: str) -> dict[str, Tensor]:
    """Return the tensors of a group in a checkpoint, on the meta device: their names, shapes and dtypes."""
    if not _has_shards(folder, group):
        whole = load_tensors(folder / f"{group}.safetensors")
        return {name: tensor.to("meta") for name, tensor in whole.items()}
    # Slow to import, and not needed without shards.
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with _damage_named(folder / SHARDS):
        check_headers(folder / SHARDS)  # torch 2.8 reads headers without a check
        metadata = HuggingFaceStorageReader(str(folder / SHARDS)).read_metadata()
    tensors = {}
    for key, entry in metadata.state_dict_metadata.items():
        if key.startswith(f"{group}.") and isinstance(entry, TensorStorageMetadata):
            name = key.removeprefix(f"{group}.")
            tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return tensors


@torch.no_grad()
def load_into(targets: Mapping[str, Tensor], folder: Path, group: str) -> None:
    """Copy tensors of a group in a checkpoint into others, which may be sharded over any number of processes.

    Each process reads by itself: from files of shards only what it needs, from a file of whole tensors all of it.

    Args:
        targets: Tensors with names and shapes of `saved_tensors`.
        folder: The folder of the checkpoint.
        group: The group, such as "model" or "optimizer".

    Raises:
        DamagedError: A file is missing or damaged.
    """
    if not _has_shards(folder, group):
        whole = load_tensors(folder / f"{group}.safetensors")
        for name, target in targets.items():
            copy_whole(whole[name], into=target)
        return
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, load

    by_key = {f"{group}.{name}": target for name, target in targets.items()}
    try:
        with warnings.catch_warnings():
            # PyTorch warns whenever a process reads shards by itself.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            reader = HuggingFaceStorageReader(str(folder / SHARDS))
            load(by_key, storage_reader=reader, no_dist=True)
    except CheckpointException as error:  # not an `Exception`; it has the traceback of each process
        cause, _ = error.failures[0]
        raise _damaged(folder / SHARDS, cause) from error


def _has_shards(folder: Path, group: str) -> bool:
    return (folder / SHARDS).is_dir() and not (folder / f"{group}.safetensors").exists()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> Exception:
    got = f"a missing or damaged one ({error})"
    return argument_error(
        str(path), "a safetensors file", got, "Use another checkpoint.", DamagedError
    )


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of PyTorch's global generators by "rank.device"; every process has to call this."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    gathered = {}
    for name, state in states.items():
        for rank, state_of_rank in enumerate(all_gather(state.to(device))):
            gathered[f"{rank}.{name}"] = state_of_rank.cpu()
    return gathered


def set_random_state(states: Mapping[str, Tensor], rank: int, device: torch.device) -> None:
    """Restore this process' part of `random_states`.

    Args:
        states: The states by "rank.device". A rank that is not in it keeps its present state.
        rank: The rank of this process.
        device: The device that the process computes on.
    """
    if f"{rank}.cpu" in states:
        torch.set_rng_state(states[f"{rank}.cpu"])
    if f"{rank}.cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states[f"{rank}.cuda"], device)
