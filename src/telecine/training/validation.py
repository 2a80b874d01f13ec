"""How good the averaged weights are on held-out clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telecine.data import Clip, bytes_from_video
from telecine.evaluation import ReconstructionMetrics
from telecine.evaluation.metrics import mean_over_clips
from telecine.report.clips import ShownClip
from telecine.report.video import side_by_side
from telecine.training.ranks import all_gathered

MAX_SHOWN = 4
MAX_KEPT = 16


@dataclass(frozen=True)
class Validation:
    """The result of one validation."""

    metrics: dict[str, float]
    """Mean over the clips of each metric."""
    per_clip: list[dict[str, float]]
    """Every clip's metrics, in order."""
    picture: Tensor
    """Side-by-side video of a few clips, uint8 `(T, H, W, 3)`."""
    clips: list[ShownClip]
    """Clips for the report, as many as `MAX_KEPT`."""


@torch.no_grad()
def validate(
    model: nn.Module, clips: Sequence[Clip], perceptual: dict[str, nn.Module], *, rank: int = 0, num_ranks: int = 1
) -> Validation:
    """Reconstruct every clip from the mode of its posterior and measure it.

    Args:
        model: An autoencoder; it is in eval mode meanwhile.
        clips: Held-out clips, the same on every process. Each process takes every `num_ranks`-th of them.
        perceptual: Perceptual distances by name.
        rank: Of this process.
        num_ranks: How many processes call this, all of them with the same clips.

    Returns:
        The same metrics on every process; the picture shows clips of its own.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    metrics = ReconstructionMetrics(perceptual)
    mine = share_of(len(clips), rank, num_ranks)
    kept = set(spread(len(mine), MAX_KEPT))
    shown: list[ShownClip] = []
    for place, index in enumerate(mine):
        target = clips[index]["video"][None].to(device)
        reconstruction = model(target, sample_posterior=False).video
        metrics.update(reconstruction=reconstruction, target=target)
        if place in kept:
            frames = bytes_from_video(target[0]).cpu(), bytes_from_video(reconstruction[0]).cpu()
            figures = metrics.per_clip()[-1]
            shown.append(ShownClip(*frames, figures, clips[index]["source"], clips[index]["start"]))
    model.train(was_training)
    per_clip = of_all_ranks(metrics.per_clip(), len(clips), device)
    few = [shown[place] for place in spread(len(shown), MAX_SHOWN)]
    picture = side_by_side(inputs=[clip.target for clip in few], reconstructions=[clip.reconstruction for clip in few])
    return Validation(mean_over_clips(per_clip), per_clip, picture, shown)


def share_of(num_clips: int, rank: int, num_ranks: int) -> list[int]:
    """Return which clips a process measures: as many on each, since sharded models compute together.

    Where the clips do not divide evenly, some are measured twice, and counted once.
    """
    return [index % num_clips for index in range(rank, num_ranks * -(-num_clips // num_ranks), num_ranks)]


def of_all_ranks(
    per_clip: Sequence[Mapping[str, float]], num_clips: int, device: torch.device
) -> list[dict[str, float]]:
    """Return each clip's values, in order, from every process' share of them."""
    own = torch.tensor([list(values.values()) for values in per_clip], dtype=torch.float64, device=device)
    in_order = torch.stack(all_gathered(own), dim=1).flatten(0, 1)[:num_clips]
    return [dict(zip(per_clip[0], row, strict=True)) for row in in_order.tolist()]


def spread(total: int, count: int) -> list[int]:
    """Return up to `count` indices below `total`, evenly spaced."""
    count = min(total, count)
    return [index * total // count for index in range(count)]
