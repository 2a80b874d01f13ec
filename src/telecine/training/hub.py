"""Uploading the averaged weights to the Hugging Face Hub, from which diffusers loads them by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import create_repo, upload_folder
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from telecine.autoencoders.load import is_hub_name
from telecine.autoencoders.pretrained import CONFIG_FILE
from telecine.base.checks import argument_error
from telecine.base.files import read_json

# All errors of requests. Those of the network have the base class of `HfHubHTTPError`, which differs between versions.
_HUB_ERRORS: tuple[type[Exception], ...] = (LocalTokenNotFoundError, *HfHubHTTPError.__bases__, OSError)
# Only diffusers writes this key into a configuration.
_DIFFUSERS_KEY = "_diffusers_version"
_CARD = """---
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


def create_repository(name: str) -> str:
    """Create the repository for the upload, if it does not exist, and return its full name.

    A run calls this before it trains, so that a missing token is reported at the start.

    Raises:
        ValueError: The Hub cannot be reached, or refuses.
    """
    try:
        return create_repo(name, exist_ok=True).repo_id
    except _HUB_ERRORS as error:
        remedy = "Log in with `hf auth login` or set HF_TOKEN, and check `hub_model_id`; or turn `push_to_hub` off."
        raise argument_error("push_to_hub", "possible", f"{type(error).__name__}: {error}", remedy) from error


def upload(repo_id: str, checkpoint: Path, base: str | None, metrics: Mapping[str, float], *, steps: int) -> None:
    """Upload a checkpoint's averaged weights and a model card with their metrics.

    Args:
        repo_id: The repository's full name.
        checkpoint: Folder of the checkpoint.
        base: The model that the run started from; None if its weights were random.
        metrics: Metrics of the last validation.
        steps: Number of updates done.

    Raises:
        ValueError: The Hub cannot be reached, or refuses.
    """
    folder = checkpoint / "ema"
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    card = _CARD.format(
        library=_library_of(folder), name=repo_id, base=_describe_base(base), figures=figures, steps=steps
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    try:
        upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Weights after {steps} updates")
    except _HUB_ERRORS as error:
        remedy = f"The run is complete, with the weights in {folder}. Run the same command again to upload them."
        raise argument_error("push_to_hub", "possible", f"{type(error).__name__}: {error}", remedy) from error


def _library_of(folder: Path) -> str:
    """Return the library that loads the model in a folder: diffusers if it has written its version there."""
    config = folder / CONFIG_FILE
    return "diffusers" if config.is_file() and _DIFFUSERS_KEY in read_json(config) else "telecine"


def _describe_base(model: str | None) -> str:
    """Return " from <model>" if a run started from a model of the Hub. Local paths are private."""
    return f" from {model}" if model and is_hub_name(model) and not Path(model).exists() else ""
