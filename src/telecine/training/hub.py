"""The averaged weights on the Hugging Face Hub, where diffusers loads them from by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import create_repo, upload_folder
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from telecine.shapes import argument_error
from telecine.training.config import TrainConfig

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

Averaged weights after {steps} updates; `config.yaml` has every setting of the run.
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
    base = f" from {config.model}" if config.model else ""
    library = "diffusers" if config.model else "telecine"
    card = CARD.format(library=library, name=repo_id, base=base, figures=figures, steps=steps)
    (folder / "README.md").write_text(card, encoding="utf-8")
    upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Weights after {steps} updates")
