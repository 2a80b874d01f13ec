"""The averaged weights on the Hugging Face Hub, where diffusers loads them from by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import create_repo, upload_folder
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from telecine.autoencoders.load import is_hub_name
from telecine.autoencoders.pretrained import CONFIG_FILE
from telecine.checks import argument_error
from telecine.files import read_json
from telecine.training.config import TrainConfig

# The key of a configuration that diffusers alone writes.
DIFFUSERS_KEY = "_diffusers_version"
CARD = """---
library_name: {library}
tags:
- video-autoencoder
- telecine
---

# {name}

A video autoencoder trained with telecine{base}.

| held-out clips | value |
|---|---|
{figures}

Averaged weights after {steps} updates.
"""


def create_repository(config: TrainConfig) -> str:
    """Create the repository that a run uploads to, if it is not there yet, and return its full name.

    A run does so before it trains: a missing token is better known at the start.

    Raises:
        ValueError: If the Hub cannot be reached, or refuses.
    """
    name = config.hub_model_id or Path(config.output_dir).resolve().name
    try:
        return create_repo(name, exist_ok=True).repo_id
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        remedy = "Log in with `hf auth login` or set HF_TOKEN, and check `hub_model_id`; or leave `push_to_hub` out."
        raise argument_error("push_to_hub", "possible", f"{type(error).__name__}: {error}", remedy) from error


def upload(repo_id: str, checkpoint: Path, config: TrainConfig, metrics: Mapping[str, float], *, steps: int) -> None:
    """Upload a checkpoint's averaged weights, with a card that says what they are and how they validated.

    Args:
        repo_id: The repository's full name.
        checkpoint: Folder of the checkpoint.
        config: The run's settings.
        metrics: Figures of the held-out clips.
        steps: Updates done.
    """
    folder = checkpoint / "ema"
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    card = CARD.format(
        library=library_of(folder), name=repo_id, base=base_of(config.model), figures=figures, steps=steps
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Weights after {steps} updates")


def library_of(folder: Path) -> str:
    """Return the library that loads the model in a folder: diffusers where it has written its version there."""
    config = folder / CONFIG_FILE
    return "diffusers" if config.is_file() and DIFFUSERS_KEY in read_json(config) else "telecine"


def base_of(model: str | None) -> str:
    """Say from which model of the Hub a run started; paths on this machine are nobody else's business."""
    return f" from {model}" if model and is_hub_name(model) and not Path(model).exists() else ""
