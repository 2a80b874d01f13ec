"""Weights in files: the autoencoder's, in a folder that its library loads, and discriminators to start from."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from telecine.autoencoders import CausalVAE, VideoAutoencoder
from telecine.autoencoders.latent import NORMALISATION_KEYS, LatentStatistics
from telecine.autoencoders.lora import low_rank_layers, merge_in_place
from telecine.autoencoders.pretrained import CLASS_KEY, CONFIG_FILE, check_tensors, digest_of_tensors
from telecine.base.checks import argument_error, describe
from telecine.base.files import read_json
from telecine.base.frozen import Frozen
from telecine.objective import VideoAutoencoderLoss
from telecine.runs import find_checkpoint
from telecine.training.distributed import copy_module
from telecine.training.tensor_files import SHARDS, load_tensors, save_tensors, saved_tensors

# The names of the raw and of the averaged weights in a checkpoint.
MODEL, EMA = "model", "ema"
# The file with the state dict of the objective, and where this has the discriminators.
OBJECTIVE_FILE = "objective.safetensors"
_DISCRIMINATORS = ("discr.", "discr_3d.", "multiscale_discrs.")


@runtime_checkable
class _HasJSONConfig(Protocol):
    """A diffusers model, which can print its configuration."""

    def to_json_string(self) -> str: ...


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
            copy_module(model, into=whole)  # those that are not in the files of LoRA updates
            _load_whole(whole, folder / name)
            copy_module(whole, into=model)
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
    """Copy the weights in a folder, or the LoRA updates beside it, into a model that is not sharded."""
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
    module: object = getattr(model, "module", model)
    if isinstance(module, CausalVAE):
        values = json.loads(json.dumps(asdict(module.config)))
    elif isinstance(module, _HasJSONConfig):
        values = json.loads(module.to_json_string())
    else:  # a custom module has none
        return {}
    left_out = {key for key in values if key.startswith("_") and key != CLASS_KEY}.union(NORMALISATION_KEYS)
    return {key: value for key, value in values.items() if key not in left_out}


def _trained_and_buffers(model: VideoAutoencoder) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if value.requires_grad or not isinstance(value, nn.Parameter)}


def _digest_of_frozen(model: nn.Module) -> str:
    return digest_of_tensors((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad)


def _updates_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_updates.safetensors")


def load_discriminators(objective: VideoAutoencoderLoss, source: str) -> None:
    """Copy the discriminators of another run, of its last checkpoint, into an objective."""
    setting, checkpoint = "discriminator.init", find_checkpoint(Path(source))
    if checkpoint is None:
        raise argument_error(setting, "a run with a checkpoint", f"{source!r}, without one", "Check the spelling.")
    weights, found = (
        {name: weight for name, weight in state.items() if name.startswith(_DISCRIMINATORS)}
        for state in (objective.state_dict(), load_tensors(checkpoint / OBJECTIVE_FILE))
    )
    for run, each in (("this run", weights), (source, found)):
        if not each:
            remedy = "They are built only for `objective.adversarial_loss_weight`."
            raise argument_error(setting, f"given with discriminators of {run}", "none", remedy)
    remedy = "Use the `discriminator` settings and the size of the clips of that run."
    check_tensors(weights, found, name=setting, contract="a run with the same discriminators", remedy=remedy)
    objective.load_state_dict(found, strict=False)
