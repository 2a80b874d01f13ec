"""Tensors of a checkpoint: their copy in the host's memory, their files without pickle, and the shards of processes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from telecine.autoencoders.pretrained import check_tensors, safetensors_write, without_shared_memory
from telecine.base.checks import argument_error
from telecine.runs import DamagedError
from telecine.training.distributed import all_gather, is_sharded, local_shard, offsets_of
from telecine.training.state import parameters_of

# The subfolder of a checkpoint for the files of shards.
SHARDS = "shards"
# The keys by which PyTorch's `HuggingFaceStorageReader` finds where a shard begins.
_SHARDING_INFO, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


class HostCopy:
    """Copies of tensors in the memory of the host: the shards of this process, and in the main one all whole tensors.

    It keeps its memory for the next copy, as allocating takes longer than copying.
    """

    def __init__(self, *, is_main: bool) -> None:
        self.is_main = is_main
        self.tensors: dict[str, Tensor] = {}
        self.offsets: dict[str, list[int]] = {}  # where each copy begins in the whole tensor, in each dimension

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the copies. A name has the same shape and dtype in each call."""
        before, self.tensors, self.offsets = self.tensors, {}, {}
        for name, tensor in tensors.items():
            if self.is_main or is_sharded(tensor):
                local, memory = local_shard(tensor), before.get(name)
                if memory is None:
                    memory = torch.empty_like(local, device="cpu", memory_format=torch.contiguous_format)
                self.tensors[name], self.offsets[name] = memory.copy_(local), offsets_of(tensor)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors, or raise an `OSError`."""
    with safetensors_write(path):
        save_file({name: tensor.cpu().contiguous() for name, tensor in without_shared_memory(tensors).items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_tensors` wrote; raise a `DamagedError` if the file is missing or damaged."""
    with _damage_named(path):
        return load_file(path)


def check_headers(folder: Path) -> None:
    """Raise an `OSError` if a safetensors file below a folder has not the size in its header: the disk may be full."""
    path = folder
    try:
        for path in folder.rglob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
    except SafetensorError as error:
        raise OSError(f"{path} was not written whole: {error}") from error


def shard_file(folder: Path, rank: int, num_ranks: int) -> Path:
    """Return the file in the folder of a checkpoint in which a process writes its shards."""
    return folder / SHARDS / f"shard-{rank:05d}-of-{num_ranks:05d}.safetensors"


def save_shards(path: Path, groups: Mapping[str, HostCopy]) -> None:
    """Write the copies of this process as "name of the group.name of the tensor".

    The file has the format of PyTorch's `HuggingFaceStorageWriter(save_distributed=True)`, which itself would first
    hold all bytes of the file a second time, and let the processes communicate.
    """
    tensors, offsets = {}, {}
    for group, copy in groups.items():
        for name, tensor in copy.tensors.items():
            tensors[f"{group}.{name}"], offsets[f"{group}.{name}"] = tensor, {_OFFSETS: copy.offsets[name]}
    path.parent.mkdir(exist_ok=True)
    with safetensors_write(path):
        save_file(tensors, path, {_SHARDING_INFO: json.dumps(offsets)})  # several would be in another order each time


def saved_tensors(folder: Path, group: str) -> _SavedTensors:
    """Return the tensors of a group in a checkpoint: those of a file of its own, otherwise those in the shards."""
    whole, shards = folder / f"{group}.safetensors", sorted((folder / SHARDS).glob("*.safetensors"))
    return _SavedTensors(shards, prefix=f"{group}.") if shards and not whole.exists() else _SavedTensors([whole])


class _SavedTensors:
    """Tensors with a prefix, which is removed, whose rows may be divided over several files, and are read on demand."""

    def __init__(self, paths: Iterable[Path], *, prefix: str = "") -> None:
        parts: defaultdict[str, list[tuple[int, int, Any]]] = defaultdict(list)  # first row, end, the file with them
        shapes: dict[str, list[int]] = {}
        for path in paths:
            with _damage_named(path):
                file: Any = safe_open(path, "pt")
            offsets = json.loads((file.metadata() or {}).get(_SHARDING_INFO, "{}"))
            for key in file.keys():  # noqa: SIM118
                name, shape = key.removeprefix(prefix), file.get_slice(key).get_shape()
                if key.startswith(prefix):
                    begin = offsets[key][_OFFSETS][0] if shape and offsets else 0
                    end = begin + shape[0] if shape else 1
                    parts[name].append((begin, end, file))
                    shapes[name] = [max(end, *shapes.get(name, [0])[:1]), *shape[1:]] if shape else []
        self._prefix, self._parts = prefix, {name: sorted(found, key=itemgetter(0)) for name, found in parts.items()}
        self.whole = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}  # without memory

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """Return a tensor on the CPU; if `like` is sharded, only the rows that its shard in this process has."""
        parts, key = self._parts[name], f"{self._prefix}{name}"
        if self.whole[name].ndim == 0:
            _, _, file = parts[0]
            return file.get_tensor(key)
        begin = 0 if like is None else offsets_of(like)[0]
        end = begin + len(self.whole[name] if like is None else local_shard(like))
        read = []
        for part_begin, part_end, file in parts:
            first, last = (min(max(row, part_begin), part_end) - part_begin for row in (begin, end))
            read.append(file.get_slice(key)[first:last])
        return read[0] if len(read) == 1 else torch.cat(read)

    @torch.no_grad()
    def copy_into(self, tensors: Mapping[str, Tensor], *, source: Path) -> None:
        """Copy all tensors, saved in `source`, into others of the same names and shapes, whole or sharded."""
        remedy = "Use the previous model, or another --output_dir."
        check_tensors(tensors, self.whole, name=str(source), contract="the model's weights", remedy=remedy)
        for name, tensor in tensors.items():
            local_shard(tensor).copy_(self.read(name, tensor))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn the error of a safetensors file that is missing or damaged into a `DamagedError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        contract, got = "a safetensors file", f"a missing or damaged one ({error})"
        raise argument_error(str(path), contract, got, "Use another checkpoint.", DamagedError) from error


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state by "index of the parameter.name"; its hyperparameters are settings of the run."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, parameter in enumerate(parameters_of(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def load_optimizer(optimizer: Optimizer, saved: _SavedTensors) -> None:
    """Load what `optimizer_tensors` returned into an optimizer of the same parameters; its hyperparameters stay."""
    parameters = parameters_of(optimizer)
    state: defaultdict[int, dict[str, Tensor | int]] = defaultdict(dict)
    for key, whole in saved.whole.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        is_elementwise = whole.shape == parameter.shape and whole.ndim > 0
        tensor = saved.read(key, like=parameter if is_elementwise else None)
        if is_elementwise and is_sharded(parameter):  # sharded as the parameter is
            shard, tensor = tensor, torch.empty_like(parameter, dtype=tensor.dtype)
            local_shard(tensor).copy_(shard)
        is_int = tensor.ndim == 0 and not tensor.is_floating_point()  # the steps of bitsandbytes, not those of PyTorch
        state[int(index)][name] = int(tensor) if is_int else tensor
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
