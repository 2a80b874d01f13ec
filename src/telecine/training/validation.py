"""How good the averaged weights are on held-out clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telecine.data import Clip, bytes_from_video
from telecine.evaluation import ReconstructionMetrics
from telecine.report.video import side_by_side

MAX_SHOWN = 4


@dataclass(frozen=True)
class Validation:
    """The result of one validation."""

    metrics: dict[str, float]
    """Mean over the clips of each metric."""
    picture: Tensor
    """Side-by-side video of a few clips, uint8 `(T, H, W, 3)`."""


@torch.no_grad()
def validate(model: nn.Module, clips: Sequence[Clip], perceptual: dict[str, nn.Module]) -> Validation:
    """Reconstruct every clip from the mode of its posterior and measure it.

    Args:
        model: An autoencoder; it is put into eval mode.
        clips: Held-out clips.
        perceptual: Perceptual distances by name.
    """
    model.eval()
    device = next(model.parameters()).device
    metrics = ReconstructionMetrics(perceptual)
    inputs, reconstructions = [], []
    shown = set(spread(len(clips), MAX_SHOWN))
    for index, clip in enumerate(clips):
        target = clip["video"][None].to(device)
        reconstruction = model(target, sample_posterior=False).video
        metrics.update(reconstruction=reconstruction, target=target)
        if index in shown:
            inputs.append(bytes_from_video(target[0]))
            reconstructions.append(bytes_from_video(reconstruction[0]))
    return Validation(metrics.compute(), side_by_side(inputs=inputs, reconstructions=reconstructions))


def spread(total: int, count: int) -> list[int]:
    """Return up to `count` indices below `total`, evenly spaced."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
