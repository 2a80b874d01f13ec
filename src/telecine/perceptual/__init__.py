"""The perceptual loss: LPIPS or a custom distance, its frames, and the sources of its weights."""

from telecine.perceptual.alignment import Alignment
from telecine.perceptual.distance import CustomDistance
from telecine.perceptual.frames import in_chunks, pick_frames, sample_frame_indices
from telecine.perceptual.lpips import LPIPS, Perceptual, gram, gram_distance, gram_matrix
from telecine.perceptual.weights import (
    CachedWeights,
    CorruptWeightsError,
    WeightsNotFoundError,
    WeightsSource,
    fetch,
    is_default_source,
    listing,
    load_backbone,
    verify,
)

__all__ = [
    "LPIPS",
    "Alignment",
    "CachedWeights",
    "CorruptWeightsError",
    "CustomDistance",
    "Perceptual",
    "WeightsNotFoundError",
    "WeightsSource",
    "fetch",
    "gram",
    "gram_distance",
    "gram_matrix",
    "in_chunks",
    "is_default_source",
    "listing",
    "load_backbone",
    "pick_frames",
    "sample_frame_indices",
    "verify",
]
