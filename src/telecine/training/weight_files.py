"""The autoencoder's weights in the folders that its own library loads, whether they are sharded or whole."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telecine.autoencoders import CausalVAE
from telecine.autoencoders.lora import low_rank_layers, merge_low_rank
from telecine.autoencoders.pretrained import CLASS_KEY, CONFIG_FILE, mismatches, without_shared_memory
from telecine.files import read_json
from telecine.shapes import argument_error, describe
from telecine.training.checkpoint import load_tensors, save_tensors
from telecine.training.sharding import copy_weights


class WeightFiles:
    """Writes an autoencoder's weights and reads them back.

    Low-rank updates are merged into what others load; a run that goes on needs them apart, which a file beside the
    folder holds. The weights that they update are not in it: `base` is a digest of those, for a run that goes on to
    compare, and None where there are no updates.

    Args:
        model: The autoencoder, before it is sharded. If it will be, a whole copy of it is kept on the CPU, through
            which weights go on their way to a file.
        is_sharded: Whether it will be.
    """

    def __init__(self, model: nn.Module, *, is_sharded: bool) -> None:
        self.whole: Any = deepcopy(model).cpu() if is_sharded else None
        self.base = digest_of_frozen(model) if low_rank_layers(model) else None

    def save(self, model: Any, folder: Path | None, name: str) -> None:
        """Write `model` into `folder / name`; without a folder, only hand in this process' shards.

        Where the model is sharded, every process has to call this.
        """
        if self.whole is not None:
            copy_weights(model, into=self.whole)
            model = self.whole
        if folder is None:
            return
        merge_low_rank(model).save_pretrained(folder / name)
        if low_rank_layers(model):
            save_tensors(_updates(folder / name), without_shared_memory(_changing(model)))

    def check_base(self, saved: str | None) -> None:
        """Raise a `ValueError` where updates were trained on other weights, by the `base` that was saved with them."""
        if saved is not None and saved != self.base:
            remedy = "Go back to the old model, or `seed`; or give the run another folder with --output_dir."
            contract = "the one whose low-rank updates the run has trained"
            raise argument_error("model", contract, "one of other weights", remedy)

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
    """Copy the trained weights and the buffers of a file into a model that has low-rank updates.

    Raises:
        ValueError: They are of other updates.
    """
    found, expected = load_tensors(path), _changing(model)
    if problems := mismatches(expected, found):
        remedy = "Give the run another folder with --output_dir, or go back to the old `trainable` settings."
        raise argument_error(str(path), "the run's low-rank updates", problems[0], remedy)
    for name, weight in expected.items():
        weight.copy_(found[name])


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: the weights that are trained, and buffers."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if value.requires_grad or not isinstance(value, nn.Parameter)}


def digest_of_frozen(model: nn.Module) -> str:
    """Return a digest of the names and values of the weights that are not trained."""
    digest = sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _updates(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_updates.safetensors")
