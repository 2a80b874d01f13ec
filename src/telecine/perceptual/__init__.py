"""The perceptual loss: LPIPS, which frames it sees, and where its weights come from."""

from telecine.perceptual.frames import pick_frames, sample_frame_indices
from telecine.perceptual.lpips import LPIPS
from telecine.perceptual.weights import (
    CachedWeights,
    CorruptWeightsError,
    WeightsNotFoundError,
    WeightsSource,
    fetch,
    listing,
    load_backbone,
    verify,
)

__all__ = [
    "LPIPS",
    "CachedWeights",
    "CorruptWeightsError",
    "WeightsNotFoundError",
    "WeightsSource",
    "fetch",
    "listing",
    "load_backbone",
    "pick_frames",
    "sample_frame_indices",
    "verify",
]
