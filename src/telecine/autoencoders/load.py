"""An autoencoder of any kind from a folder or a hub's name, by the class that its configuration names."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from telecine.autoencoders.causal import CausalVAE
from telecine.autoencoders.pretrained import CLASS_KEY, CONFIG_FILE, WEIGHTS_FILE
from telecine.files import read_json
from telecine.shapes import argument_error

if TYPE_CHECKING:
    from telecine.autoencoders.diffusers import DiffusersAutoencoder


def load_autoencoder(
    name_or_folder: str | PathLike[str], *, subfolder: str | None = None, revision: str | None = None
) -> CausalVAE | DiffusersAutoencoder:
    """Return the autoencoder in a folder or of a hub's name, on the CPU, in float32 and training mode.

    Args:
        name_or_folder: A folder that `save_pretrained` wrote, telecine's or diffusers', a pipeline's folder, or the
            name of a model on the Hugging Face hub, such as "Wan-AI/Wan2.1-T2V-1.3B-Diffusers". A `.json` file is a
            configuration of diffusers, and its model has random weights.
        subfolder: Where in it the model lies; "vae" of a whole pipeline by default.
        revision: The hub's branch, tag or commit.

    Raises:
        FileNotFoundError: The folder is not there, or holds no weights.
        ValueError: It holds no configuration, or one that names no known class; or its weights do not fit.
        ImportError: The model is one of diffusers', which is not installed.
    """
    folder = Path(name_or_folder) / (subfolder or "")
    if is_own(folder):
        return CausalVAE.from_pretrained(folder)
    is_config = folder.suffix == ".json"
    if not is_config and not Path(name_or_folder).is_dir() and not is_hub_name(str(name_or_folder)):
        contract = f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or a hub's name such as `owner/name`"
        remedy = "Check its spelling: no such folder exists."
        raise argument_error("name_or_folder", contract, f"{str(name_or_folder)!r}", remedy, FileNotFoundError)
    from telecine.autoencoders.diffusers import DiffusersAutoencoder

    if is_config:
        return DiffusersAutoencoder.from_config(folder)
    return DiffusersAutoencoder.from_pretrained(name_or_folder, subfolder=subfolder, revision=revision)


def is_own(folder: Path) -> bool:
    """Say whether a folder holds one of telecine's own autoencoders."""
    config = folder / CONFIG_FILE
    return config.is_file() and read_json(config).get(CLASS_KEY) == CausalVAE.__name__


def is_hub_name(text: str) -> bool:
    """Say whether a text could be the name of a model on a hub: an owner and a name."""
    return text.count("/") == 1 and not text.startswith(("/", ".", "~")) and not text.endswith("/")
