"""The autoencoder's weights in folders that its library loads, whether the weights are sharded or not."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from telecine.autoencoders import CausalVAE, VideoAutoencoder
from telecine.autoencoders.lora import low_rank_layers, merge_low_rank
from telecine.autoencoders.pretrained import CLASS_KEY, CONFIG_FILE, mismatches, without_shared_memory
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

    LoRA updates are merged into the weights that other programs load. To resume, a run needs them separately, so they
    are also saved in a file beside the folder. The frozen weights below them are not in that file; `base` is a digest
    of these, by which a resumed run recognises another base model. Without LoRA it is None.

    Args:
        model: The autoencoder, before it is sharded.
        is_sharded: Whether it will be sharded. Weights are then gathered in an unsharded copy on the CPU.
    """

    def __init__(self, model: VideoAutoencoder, *, is_sharded: bool) -> None:
        self.unsharded = deepcopy(model).cpu() if is_sharded else None
        self.base = digest_of_frozen(model) if low_rank_layers(model) else None

    def save(self, model: VideoAutoencoder, folder: Path | None, name: str) -> None:
        """Write `model` into `folder / name`. A process without a folder only takes part in gathering the weights.

        If the model is sharded, every process has to call this.
        """
        if self.unsharded is not None:
            copy_weights(model, into=self.unsharded)
            model = self.unsharded
        if folder is None:
            return
        merge_low_rank(model).save_pretrained(folder / name)
        if low_rank_layers(model):
            save_tensors(_updates_file(folder / name), without_shared_memory(_trained_and_buffers(model)))

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
        target = model if self.unsharded is None else self.unsharded
        if low_rank_layers(target):
            load_updates(target, _updates_file(folder))
        else:
            target.load_weights(folder)
        if target is not model:
            copy_weights(target, into=model)


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
    """Return the settings that a model saves with its weights; nothing for a custom module."""
    module: object = getattr(model, "module", model)
    if isinstance(module, CausalVAE):
        values = json.loads(json.dumps(asdict(module.config)))
    elif isinstance(module, HasJSONConfig):
        values = json.loads(module.to_json_string())
    else:
        return {}
    return {key: value for key, value in values.items() if key == CLASS_KEY or not key.startswith("_")}


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
    digest = sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _updates_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_updates.safetensors")
