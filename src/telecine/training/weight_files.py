"""The autoencoder's weights in folders that its library loads, whether the weights are sharded or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from telecine.autoencoders import CausalVAE, VideoAutoencoder
from telecine.autoencoders.latent_statistics import NORMALISATION_KEYS
from telecine.autoencoders.lora import low_rank_layers, merge_low_rank
from telecine.autoencoders.pretrained import (
    CLASS_KEY,
    CONFIG_FILE,
    digest_of_tensors,
    mismatches,
    without_shared_memory,
)
from telecine.checks import argument_error, describe
from telecine.files import read_json
from telecine.training.checkpoint_files import load_tensors, save_tensors
from telecine.training.distributed import copy_weights


@runtime_checkable
class HasJSONConfig(Protocol):
    """A diffusers model, which can print its configuration."""

    def to_json_string(self) -> str:
        """Return the configuration as JSON."""


class WeightFiles:
    """Saves and loads an autoencoder's weights.

    Weights are saved from a copy of the autoencoder in the host's memory, while the autoencoder itself trains.

    LoRA updates are merged into the weights that other programs load. To resume, a run needs them separately, so they
    are also saved in a file beside the folder. The frozen weights below them are not in that file; `base` is a digest
    of these, by which a resumed run recognises another base model. Without LoRA it is None.

    Args:
        model: The autoencoder, before it is sharded.
        is_main: Whether this process writes the files.
        is_sharded: Whether the autoencoder will be sharded. Every process then has a copy, to load weights with.

    Raises:
        ValueError: The autoencoder cannot be copied.
    """

    def __init__(self, model: VideoAutoencoder, *, is_main: bool, is_sharded: bool) -> None:
        self.is_sharded = is_sharded
        self.copy = copy_of(model) if is_main or is_sharded else None
        self.base = digest_of_frozen(model) if low_rank_layers(model) else None

    def update_copy(self, model: VideoAutoencoder) -> None:
        """Copy the weights of `model`; if it is sharded, every process has to call this."""
        if self.copy is not None:
            copy_weights(model, into=self.copy)

    def save(self, folder: Path, name: str) -> None:
        """Write the copy into `folder / name`."""
        assert self.copy is not None
        merge_low_rank(self.copy).save_pretrained(folder / name)
        if low_rank_layers(self.copy):
            save_tensors(_updates_file(folder / name), without_shared_memory(_trained_and_buffers(self.copy)))

    @torch.no_grad()
    def put_into_copy(self, weights: Mapping[str, Tensor]) -> None:
        """Replace some of the copy's weights, by name."""
        assert self.copy is not None
        for name, weight in weights.items():
            self.copy.get_parameter(name).copy_(weight)

    def check_base(self, saved: str | None) -> None:
        """Raise a `ValueError` if LoRA updates with the digest `saved` were trained on another base model."""
        if saved is not None and saved != self.base:
            remedy = "Use the previous model or `seed`, or another --output_dir."
            contract = "the base model of the run's LoRA updates"
            raise argument_error("model", contract, "a model with other weights", remedy)

    def load(self, model: VideoAutoencoder, folder: Path) -> None:
        """Copy the weights in `folder` into `model`; every process has to call this.

        Raises:
            FileNotFoundError: There are no weights.
            ValueError: They are damaged, or of another model.
        """
        target = self.copy if self.is_sharded else model
        assert target is not None
        if low_rank_layers(target):
            load_updates(target, _updates_file(folder))
        else:
            target.load_weights(folder)
        if target is not model:
            copy_weights(target, into=model)


def copy_of(model: VideoAutoencoder) -> VideoAutoencoder:
    """Return a copy of a model on the CPU.

    Raises:
        ValueError: It cannot be copied, as a module with `torch.nn.utils.weight_norm` cannot.
    """
    try:
        return deepcopy(model).cpu()
    except (RuntimeError, TypeError) as error:  # PyTorch's for tensors with a graph, Python's for everything else
        remedy = "Use `torch.nn.utils.parametrizations` in the place of `weight_norm`, and keep no open files in it."
        contract, got = "a module that `copy.deepcopy` copies", f"one with which it fails ({error})"
        raise argument_error("autoencoder", contract, got, remedy) from error


def check_same_architecture(model: VideoAutoencoder, folder: Path, name: str) -> None:
    """Compare a model's architecture with the `config.json` that was saved with weights.

    Settings that change no shape of a weight would not make loading fail, but the output would differ.

    Args:
        model: The autoencoder.
        folder: Folder of the saved weights.
        name: What the user calls the model, for the error.

    Raises:
        ValueError: A setting differs.
    """
    config = folder / CONFIG_FILE
    saved = read_json(config) if config.is_file() else {}
    for key, value in architecture_of(model).items():
        if key in saved and saved[key] != value:
            remedy = "Use the previous model, or another --output_dir."
            raise argument_error(f"{key} of {name}", f"{saved[key]!r} as in {folder}", describe(value), remedy)


def architecture_of(model: VideoAutoencoder) -> dict[str, object]:
    """Return the settings that a model saves with its weights; nothing for a custom module.

    What normalises the latent is left out: training changes it.
    """
    module: object = getattr(model, "module", model)
    if isinstance(module, CausalVAE):
        values = json.loads(json.dumps(asdict(module.config)))
    elif isinstance(module, HasJSONConfig):
        values = json.loads(module.to_json_string())
    else:
        return {}
    values = {key: value for key, value in values.items() if key == CLASS_KEY or not key.startswith("_")}
    return {key: value for key, value in values.items() if key not in NORMALISATION_KEYS}


@torch.no_grad()
def load_updates(model: VideoAutoencoder, path: Path) -> None:
    """Copy the trained weights and buffers in a file into a model that has LoRA updates.

    Raises:
        ValueError: They belong to other updates.
    """
    found, expected = load_tensors(path), _trained_and_buffers(model)
    if problems := mismatches(expected, found):
        remedy = "Use the previous `trainable` settings, or another --output_dir."
        raise argument_error(str(path), "the run's LoRA updates", problems[0], remedy)
    for name, weight in expected.items():
        weight.copy_(found[name])


def _trained_and_buffers(model: VideoAutoencoder) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if value.requires_grad or not isinstance(value, nn.Parameter)}


def digest_of_frozen(model: nn.Module) -> str:
    """Return a digest of the names and values of the frozen weights."""
    return digest_of_tensors((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad)


def _updates_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_updates.safetensors")
