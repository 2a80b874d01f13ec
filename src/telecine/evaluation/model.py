"""The one place that loads an autoencoder to evaluate."""

from __future__ import annotations

from pathlib import Path

import torch

from telecine.autoencoders import VideoAutoencoder, load_autoencoder
from telecine.runs import Weights, find_checkpoint


def load_model(checkpoint: str | Path, weights: Weights, device: torch.device) -> VideoAutoencoder:
    """Return the autoencoder of a run (its last checkpoint), of a checkpoint, or of a saved model, in eval mode.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no model.
    """
    found = find_checkpoint(Path(checkpoint))
    return load_autoencoder(checkpoint if found is None else found / weights).to(device).eval()
