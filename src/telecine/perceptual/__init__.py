"""The perceptual loss: LPIPS or another distance, which frames it sees, and where its weights come from."""

from telecine.perceptual.choice import Perceptual
from telecine.perceptual.chunks import check_chunk_size, in_chunks
from telecine.perceptual.custom import CustomDistance
from telecine.perceptual.frames import pick_frames, sample_frame_indices
from telecine.perceptual.gram import gram_distance, gram_matrix
from telecine.perceptual.lpips import LPIPS, PerceptualDistance
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
    "CustomDistance",
    "Perceptual",
    "PerceptualDistance",
    "WeightsNotFoundError",
    "WeightsSource",
    "check_chunk_size",
    "fetch",
    "gram_distance",
    "gram_matrix",
    "in_chunks",
    "listing",
    "load_backbone",
    "pick_frames",
    "sample_frame_indices",
    "verify",
]
