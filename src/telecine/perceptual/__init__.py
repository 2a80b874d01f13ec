"""The perceptual loss: LPIPS or a custom distance, its frames, and the sources of its weights."""

from telecine.perceptual.alignment import Alignment
from telecine.perceptual.distance import CustomDistance
from telecine.perceptual.frames import as_rgb, in_chunks, pick_frames, sample_frame_indices
from telecine.perceptual.lpips import LPIPS, Perceptual, gram, gram_distance, gram_matrix
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
    "Alignment",
    "CachedWeights",
    "CorruptWeightsError",
    "CustomDistance",
    "Perceptual",
    "WeightsNotFoundError",
    "WeightsSource",
    "as_rgb",
    "fetch",
    "gram",
    "gram_distance",
    "gram_matrix",
    "in_chunks",
    "listing",
    "load_backbone",
    "pick_frames",
    "sample_frame_indices",
    "verify",
]
