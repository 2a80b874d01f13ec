"""Tensors in files: the copy, shards and optimizers of a checkpoint, and weights in a folder that a library loads."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from operator import itemgetter
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from telecine.base.checks import argument_error, describe
from telecine.base.files import read_json
from telecine.base.frozen import Frozen
from telecine.models import CausalVAE, VideoAutoencoder
from telecine.models.latent import NORMALISATION_KEYS, LatentStatistics
from telecine.models.lora import low_rank_layers, merge_in_place
from telecine.models.pretrained import (
    CLASS_KEY,
    CONFIG_FILE,
    check_tensors,
    digest_of_tensors,
    safetensors_write,
    without_shared_memory,
)
from telecine.runs import DamagedError
from telecine.training.distributed import all_gather, full_tensor, is_sharded, local_shard
from telecine.training.state import parameters_of

# The names of the raw and of the averaged weights in a checkpoint.
MODEL, EMA = "model", "ema"
# The file with the state dict of the objective.
OBJECTIVE_FILE = "objective.safetensors"
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
                self.tensors[name], self.offsets[name] = memory.copy_(local), _offsets_of(tensor)


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
        begin = 0 if like is None else _offsets_of(like)[0]
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


class WeightFiles:
    """Saves and loads the weights of an autoencoder, made before it is sharded.

    Weights are saved from copies in the host's memory, while the autoencoder trains. If it is sharded, each process
    saves its shards, and the first one makes the folder that other programs load, with one tensor at a time in memory.

    LoRA updates are merged into the weights that other programs load. To resume, they are also saved separately, in a
    file beside the folder, without the frozen weights below them; `base` is a digest of these, None without LoRA.
    """

    def __init__(self, model: VideoAutoencoder, *, is_sharded: bool) -> None:
        self._is_sharded = is_sharded
        # Its tensors have the same shapes, but all elements of one share their memory.
        self._without_memory = _copy_of(model, lambda _, x: torch.empty((), dtype=x.dtype).expand(x.shape))
        self.base = _digest_of_frozen(model) if low_rank_layers(model) else None

    def save(self, folder: Path, name: str, statistics: LatentStatistics | None, weights: Mapping[str, Tensor]) -> None:
        """Write weights into `folder / name`, with the statistics of the latent if there are any."""
        model = _copy_of(self._without_memory, lambda key, _: weights[key])
        if statistics is not None:
            model.set_latent_statistics(statistics)
        model.save_pretrained(folder / name)
        if low_rank_layers(model):
            save_tensors(_updates_file(folder / name), _trained_and_buffers(model))

    def save_from_shards(self, folder: Path, name: str, statistics: LatentStatistics | None) -> None:
        """Do what `save` does for the weights whose shards are in `folder`: those of "model", replaced by "ema" for it.

        They pass through temporary files that are mapped into memory, which take as much of the disk as the weights.
        """
        groups = [saved_tensors(folder, group) for group in dict.fromkeys((MODEL, name))]
        sources = {key: group for group in groups for key in group.whole}
        with TemporaryDirectory(dir=folder) as temporary:
            store = partial(_mapped, folder=temporary)
            model = _copy_of(self._without_memory, lambda key, _: store(sources[key].read(key)))
            merge_in_place(model, store)
            if statistics is not None:
                model.set_latent_statistics(statistics)
            model.save_pretrained(folder / name)
            for tensor in model.state_dict(keep_vars=True).values():
                tensor.data = tensor.new_empty(0)  # NFS cannot delete files that are mapped

    def check_base(self, saved: str | None) -> None:
        """Raise a `ValueError` if LoRA updates with the digest `saved` were trained on another base model."""
        if saved is not None and saved != self.base:
            remedy = "Use the previous model or `seed`, or another --output_dir."
            contract = "the base model of the run's LoRA updates"
            raise argument_error("model", contract, "a model with other weights", remedy)

    def load(self, model: VideoAutoencoder, folder: Path, name: str) -> None:
        """Copy the weights "model" or "ema" of a checkpoint into `model`; every process has to call this."""
        if (folder / SHARDS).is_dir():  # each process reads its own
            targets = model.state_dict()
            if name == EMA:  # which has no other weights
                targets = {key: targets[key] for key, weight in model.named_parameters() if weight.requires_grad}
            saved_tensors(folder, name).copy_into(targets, source=folder / SHARDS)
        elif self._is_sharded:  # loads the whole model for a moment, as at the start of a run
            whole = _copy_of(self._without_memory, lambda _, tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
            _copy_module(model, into=whole)  # those that are not in the files of LoRA updates
            _load_whole(whole, folder / name)
            _copy_module(whole, into=model)
        else:
            _load_whole(model, folder / name)


def _copy_of(model: VideoAutoencoder, make: Callable[[str, Tensor], Tensor]) -> VideoAutoencoder:
    """Return a copy of a model, whose saved tensors are those that `make` returns for name and value."""
    # Where `deepcopy` looks up what it has copied already. Frozen networks, which are not saved, are shared.
    memo: dict[int, Any] = {id(module): module for module in model.modules() if isinstance(module, Frozen)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in memo:
            made = make(name, tensor.detach())
            memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    try:
        return deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:  # PyTorch's for tensors with a graph, Python's for everything else
        remedy = "Use `torch.nn.utils.parametrizations` in the place of `weight_norm`, and keep no open files in it."
        contract, got = "a module that `copy.deepcopy` copies", f"one with which it fails ({error})"
        raise argument_error("autoencoder", contract, got, remedy) from error


def _mapped(tensor: Tensor, folder: str) -> Tensor:
    """Write a tensor to a new file, and return it mapped: the system reads the parts in use, and may drop them."""
    if tensor.numel() == 0:
        return tensor
    with NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return torch.from_file(file.name, shared=False, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)


@torch.no_grad()
def _load_whole(model: VideoAutoencoder, folder: Path) -> None:
    if not low_rank_layers(model):
        model.load_weights(folder)
        return
    path = _updates_file(folder)
    found, expected = load_tensors(path), _trained_and_buffers(model)
    remedy = "Use the previous `trainable` settings, or another --output_dir."
    check_tensors(expected, found, name=str(path), contract="the run's LoRA updates", remedy=remedy)
    for name, weight in expected.items():
        weight.copy_(found[name])


def check_same_architecture(model: VideoAutoencoder, folder: Path, name: str) -> None:
    """Raise a `ValueError` about the model `name`, if its architecture differs from that of the weights in a folder."""
    # Settings that change no shape of a weight would not make loading fail, but the output would differ.
    config = folder / CONFIG_FILE
    saved = read_json(config) if config.is_file() else {}
    for key, value in architecture_of(model).items():
        if key in saved and saved[key] != value:
            remedy = "Use the previous model, or another --output_dir."
            raise argument_error(f"{key} of {name}", f"{saved[key]!r} as in {folder}", describe(value), remedy)


def architecture_of(model: VideoAutoencoder) -> dict[str, object]:
    """Return the settings that a model saves with its weights, but for the latent's normalisation, which changes."""
    module: Any = getattr(model, "module", model)
    if isinstance(module, CausalVAE):
        values = json.loads(json.dumps(asdict(module.config)))
    elif hasattr(module, "to_json_string"):  # of diffusers, or a student
        values = json.loads(module.to_json_string())
    else:  # a custom module has none
        return {}
    left_out = {key for key in values if key.startswith("_") and key != CLASS_KEY}.union(NORMALISATION_KEYS)
    return {key: value for key, value in values.items() if key not in left_out}


def _offsets_of(tensor: Tensor) -> list[int]:
    """Return the offset of this process' shard in the whole tensor, in each dimension; 0 if it is not sharded."""
    if not is_sharded(tensor):
        return [0] * tensor.ndim
    (chunk,) = tensor.__create_chunk_list__()  # PyTorch's name for what distributed checkpoints need of a tensor
    return list(chunk.offsets)


@torch.no_grad()
def _copy_module(source: nn.Module, *, into: nn.Module) -> None:
    """Copy tensors between copies of a model, each sharded or the same everywhere. Every process has to call this."""
    from torch.distributed.tensor import distribute_tensor

    tensors = source.state_dict()
    for name, tensor in into.state_dict().items():
        whole = full_tensor(tensors[name])
        if is_sharded(tensor):
            whole = distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(whole)


def _trained_and_buffers(model: VideoAutoencoder) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if value.requires_grad or not isinstance(value, nn.Parameter)}


def _digest_of_frozen(model: nn.Module) -> str:
    return digest_of_tensors((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad)


def _updates_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_updates.safetensors")
