"""What each clip gave, and the figures of the whole set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from telecine.evaluation.features import VideoFeatures
from telecine.evaluation.frechet import frechet_distance, samples_needed


@dataclass(frozen=True)
class ClipResult:
    """One clip."""

    index: int
    """Its number among the clips that were planned."""
    source: str
    """The file it comes from."""
    start: int
    """Position of its first frame there."""
    values: Mapping[str, float]
    """Its metrics."""
    curves: Mapping[str, list[float]]
    """Metrics of its frames, in order."""
    sha256: str
    """Hash of its input's pixels, 8 bits each."""
    features: tuple[Tensor, Tensor] | None = None
    """Vectors `(D,)` of reconstruction and input, where a Frechet distance is asked for."""

    def as_row(self) -> dict[str, object]:
        """Return what `clips.json` says of it."""
        return {"source": self.source, "start": self.start, **self.values}


def hash_of_clips(results: Sequence[ClipResult]) -> str:
    """Return one hash of all clips' pixels, in their order: equal hashes mean equal inputs."""
    return hashlib.sha256("\n".join(result.sha256 for result in results).encode()).hexdigest()


def mean_curves(results: Sequence[ClipResult]) -> dict[str, list[float]]:
    """Return for each metric of frames its mean over clips at each position."""
    names = results[0].curves
    columns = {name: zip(*(result.curves[name] for result in results), strict=True) for name in names}
    return {name: [sum(column) / len(column) for column in positions] for name, positions in columns.items()}


def set_distance(results: Sequence[ClipResult], network: VideoFeatures) -> tuple[dict[str, float], dict[str, str]]:
    """Return the Frechet distance by its name, or, by the same name, the reason why there is none."""
    pairs = [result.features for result in results if result.features is not None]
    features, reference = (torch.stack(column) for column in zip(*pairs, strict=True))
    needed = samples_needed(features.shape[1])
    if len(features) < needed:
        reason = (
            f"needs at least {needed} clips, not {len(features)}: with fewer, the covariance of its "
            f"{features.shape[1]} features is singular"
        )
        return {}, {network.name: reason}
    if not (features.isfinite().all() and reference.isfinite().all()):
        return {}, {network.name: "its features are not finite: the reconstructions hold NaN, or the network overflows"}
    return {network.name: frechet_distance(features=features, reference=reference)}, {}
