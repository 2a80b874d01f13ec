"""The autoencoder's weights in the folders that its own library loads, whether they are sharded or whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from telecine.autoencoders import CausalVAE
from telecine.autoencoders.lora import low_rank_layers
from telecine.autoencoders.pretrained import CLASS_KEY, CONFIG_FILE, mismatches
from telecine.files import read_json
from telecine.shapes import argument_error, describe
from telecine.training.checkpoint import load_tensors, save_tensors
from telecine.training.sharding import copy_weights


class WeightFiles:
    """Writes an autoencoder's weights and reads them back.

    Low-rank updates are merged into what others load; a run that goes on needs them apart, which a file beside the
    folder holds.

    Args:
        model: The autoencoder, before it is sharded. If it will be, a whole copy of it is kept on the CPU, through
            which weights go on their way to a file.
        is_sharded: Whether it will be.
    """

    def __init__(self, model: nn.Module, *, is_sharded: bool) -> None:
        self.whole: Any = deepcopy(model).cpu() if is_sharded else None

    def save(self, model: Any, folder: Path | None, name: str) -> None:
        """Write `model` into `folder / name`; without a folder, only hand in this process' shards.

        Where the model is sharded, every process has to call this.
        """
        if self.whole is not None:
            copy_weights(model, into=self.whole)
            model = self.whole
        if folder is None:
            return
        model.save_pretrained(folder / name)
        if low_rank_layers(model):
            save_tensors(_updates(folder / name), dict(_trained(model)))

    def load(self, model: Any, folder: Path) -> None:
        """Copy the weights in `folder` into `model`; every process has to call this.

        Raises:
            FileNotFoundError: There are no weights.
            ValueError: They are damaged, or of another model.
        """
        whole = model if self.whole is None else self.whole
        if low_rank_layers(whole):
            load_updates(whole, _updates(folder))
        else:
            whole.load_weights(folder)
        if whole is not model:
            copy_weights(whole, into=model)


def check_same_architecture(model: Any, folder: Path, name: str) -> None:
    """Raise a `ValueError` for the first setting of a model that is another one in a folder's configuration.

    Not each of them changes the shape of a weight, at which loading would fail.

    Args:
        model: The autoencoder.
        folder: Where one was saved.
        name: What the model was asked for by.
    """
    config = folder / CONFIG_FILE
    saved = read_json(config) if config.is_file() else {}
    for key, value in architecture_of(model).items():
        if key in saved and saved[key] != value:
            remedy = "Give the run another folder with --output_dir, or go back to the old model."
            raise argument_error(f"{key} of {name}", f"{saved[key]!r} as in {folder}", describe(value), remedy)


def architecture_of(model: Any) -> dict[str, Any]:
    """Return a model's settings as they are saved with its weights; of a module of one's own none are known."""
    module = getattr(model, "module", model)
    if isinstance(module, CausalVAE):
        values = json.loads(json.dumps(asdict(module.config)))
    elif hasattr(module, "to_json_string"):  # of diffusers
        values = json.loads(module.to_json_string())
    else:
        return {}
    return {key: value for key, value in values.items() if key == CLASS_KEY or not key.startswith("_")}


@torch.no_grad()
def load_updates(model: nn.Module, path: Path) -> None:
    """Copy the trained weights of a file into a model that has low-rank updates.

    Raises:
        ValueError: They are of other updates.
    """
    found, expected = load_tensors(path), dict(_trained(model))
    if problems := mismatches(expected, found):
        remedy = "Give the run another folder with --output_dir, or go back to the old `trainable` settings."
        raise argument_error(str(path), "the run's low-rank updates", problems[0], remedy)
    for name, weight in expected.items():
        weight.copy_(found[name])


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _updates(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_updates.safetensors")
