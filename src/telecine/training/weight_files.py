"""The weights of an autoencoder in a checkpoint: folders that other programs load, and LoRA adapters beside them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error, describe
from telecine.base.files import read_json
from telecine.models import CausalVAE, VideoAutoencoder
from telecine.models.copies import copy_with, tensors_like
from telecine.models.latent import NORMALISATION_KEYS, LatentStatistics
from telecine.models.lora import low_rank_layers, merge_in_place
from telecine.models.pretrained import CLASS_KEY, CONFIG_FILE, check_tensors, digest_of_tensors
from telecine.models.unwrapping import unwrapped
from telecine.settings.upgrade import upgrade_autoencoder
from telecine.training.distributed import copy_whole, full_tensor
from telecine.training.tensor_files import (
    EMA,
    MODEL,
    SHARDS,
    load_into,
    load_tensors,
    save_tensors,
    saved_tensors,
)


class WeightFiles:
    """Saves and loads the weights of an autoencoder.

    Weights are saved from copies in the host's memory, while the autoencoder trains. If it is sharded, each process
    saves its shards, and the first one makes the folder that other programs load, with one tensor at a time in memory.

    LoRA adapters are merged into the weights that other programs load. To resume, they are also saved separately, in a
    file beside the folder, without the frozen weights below them.

    Args:
        model: The autoencoder, before it is sharded.
        is_sharded: Whether it will be sharded.

    Attributes:
        base: A digest of the frozen weights below LoRA adapters; None without LoRA.
    """

    def __init__(self, model: VideoAutoencoder, *, is_sharded: bool) -> None:
        self._is_sharded = is_sharded
        self._on_meta = copy_with(
            model, tensors_like(model, partial(torch.empty_like, device="meta"))
        )
        self.base: str | None = None
        if low_rank_layers(model):
            frozen = [
                (name, weight)
                for name, weight in model.named_parameters()
                if not weight.requires_grad
            ]
            self.base = digest_of_tensors(frozen)

    def save(
        self,
        folder: Path,
        name: str,
        statistics: LatentStatistics | None,
        weights: Mapping[str, Tensor],
    ) -> None:
        """Write the folder of weights that other programs load, and the file of LoRA adapters if there are any.

        Args:
            folder: The folder of the checkpoint.
            name: The name of the weights, "model" or "ema".
            statistics: Those of the latent, which the folder holds; None if they are not measured.
            weights: All tensors of the autoencoder's state dict, on the CPU.
        """
        model = copy_with(self._on_meta, weights)
        if statistics is not None:
            model.set_latent_statistics(statistics)
        model.save_pretrained(folder / name)
        if low_rank_layers(model):
            save_tensors(_updates_file(folder, name), _trained_and_buffers(model))

    def save_from_shards(
        self, folder: Path, name: str, statistics: LatentStatistics | None
    ) -> None:
        """Write the folder of weights that other programs load from the shards of a checkpoint.

        The weights pass through temporary files that are mapped into memory, which take as much of the disk.

        Args:
            folder: The folder of the checkpoint, with the shards of all processes.
            name: The name of the weights, "model" or "ema", whose shards replace the shards of "model".
            statistics: Those of the latent, which the folder holds; None if they are not measured.
        """
        with TemporaryDirectory(dir=folder) as temporary:
            model = copy_with(
                self._on_meta, tensors_like(self._on_meta, partial(_mapped, folder=temporary))
            )
            weights = model.state_dict()
            for group in dict.fromkeys((MODEL, name)):
                load_into(
                    {key: weights[key] for key in saved_tensors(folder, group)}, folder, group
                )
            merge_in_place(model, lambda weight: _mapped(weight, temporary).copy_(weight.detach()))
            if statistics is not None:
                model.set_latent_statistics(statistics)
            model.save_pretrained(folder / name)
            for tensor in model.state_dict(keep_vars=True).values():
                tensor.data = tensor.new_empty(0)  # NFS cannot delete files that are mapped

    def check_base(self, saved: str | None) -> None:
        """Check that LoRA adapters were trained on this base model.

        Raises:
            ValueError: The digest `saved` belongs to another base model.
        """
        if saved is not None and saved != self.base:
            remedy = "Use the previous model or `seed`, or another --output_dir."
            contract = "the base model of the run's LoRA adapters"
            raise argument_error("model", contract, "a model with other weights", remedy)

    @torch.no_grad()
    def load(self, model: VideoAutoencoder, folder: Path, name: str) -> None:
        """Copy weights of a checkpoint into the autoencoder; every process has to call this.

        Args:
            model: The autoencoder, which may be sharded.
            folder: The folder of the checkpoint.
            name: The name of the weights, "model" or "ema".
        """
        if (folder / SHARDS).is_dir():
            targets = model.state_dict()
            if name == EMA:  # which has no other weights
                targets = {
                    key: targets[key]
                    for key, weight in model.named_parameters()
                    if weight.requires_grad
                }
            remedy = "Use the previous model, or another --output_dir."
            saved = saved_tensors(folder, name)
            check_tensors(
                targets,
                saved,
                name=str(folder / SHARDS),
                contract="the model's weights",
                remedy=remedy,
            )
            load_into(targets, folder, name)
        elif self._is_sharded:  # loads the whole model for a moment, as at the start of a run
            whole = copy_with(
                self._on_meta, tensors_like(self._on_meta, partial(torch.empty_like, device="cpu"))
            )
            copy_module(model, into=whole)  # those that are not in the files of LoRA adapters
            _load_whole(whole, folder, name)
            copy_module(whole, into=model)
        else:
            _load_whole(model, folder, name)


def _mapped(like: Tensor, folder: str) -> Tensor:
    """Return a new tensor in a file that is mapped into memory: the system may drop the parts that are not in use."""
    if like.numel() == 0:
        return torch.empty(like.shape, dtype=like.dtype)
    with NamedTemporaryFile(dir=folder, delete=False) as file:
        # So that a full disk is an error here, not later.
        os.posix_fallocate(file.fileno(), 0, like.numel() * like.itemsize)
    return torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype).view(
        like.shape
    )


@torch.no_grad()
def copy_module(source: nn.Module, *, into: nn.Module) -> None:
    """Copy tensors between copies of a model, each sharded or the same everywhere. Every process has to call this."""
    tensors = source.state_dict()
    for name, tensor in into.state_dict().items():
        copy_whole(full_tensor(tensors[name]), into=tensor)


def _load_whole(model: VideoAutoencoder, folder: Path, name: str) -> None:
    if not low_rank_layers(model):
        model.load_weights(folder / name)
        return
    path = _updates_file(folder, name)
    saved = load_tensors(path)
    targets = _trained_and_buffers(model)
    remedy = "Use the previous `trainable` settings, or another --output_dir."
    check_tensors(targets, saved, name=str(path), contract="the run's LoRA adapters", remedy=remedy)
    for key, target in targets.items():
        target.copy_(saved[key])


def _trained_and_buffers(model: VideoAutoencoder) -> dict[str, Tensor]:
    tensors = model.state_dict(keep_vars=True)
    return {
        key: x for key, x in tensors.items() if x.requires_grad or not isinstance(x, nn.Parameter)
    }


def _updates_file(folder: Path, name: str) -> Path:
    return folder / f"{name}_updates.safetensors"


def check_same_architecture(model: VideoAutoencoder, folder: Path, name: str) -> None:
    """Check that a model has the architecture of saved weights.

    Settings that change no shape of a weight would not make loading fail, but the output would differ.

    Args:
        model: The model.
        folder: The folder of the weights, with their configuration.
        name: The name of the model for the error.

    Raises:
        ValueError: A value of its configuration differs.
    """
    config = folder / CONFIG_FILE
    # Weights are saved without settings that older versions do not know, where they change nothing.
    saved = upgrade_autoencoder(read_json(config)) if config.is_file() else {}
    for key, value in architecture_of(model).items():
        if key in saved and saved[key] != value:
            remedy = "Use the previous model, or another --output_dir."
            raise argument_error(
                f"{key} of {name}", f"{saved[key]!r} as in {folder}", describe(value), remedy
            )


def architecture_of(model: VideoAutoencoder) -> dict[str, object]:
    """Return the settings that a model saves with its weights, but for the latent's normalisation, which changes."""
    module: Any = unwrapped(model)
    if isinstance(module, CausalVAE):
        values = json.loads(json.dumps(asdict(module.config)))
    elif hasattr(module, "to_json_string"):  # of diffusers, or a student
        values = json.loads(module.to_json_string())
    else:  # a custom module has none
        return {}
    architecture = {}
    for key, value in values.items():
        is_private = key.startswith("_") and key != CLASS_KEY
        if not is_private and key not in NORMALISATION_KEYS:
            architecture[key] = value
    return architecture
