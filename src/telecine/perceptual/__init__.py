"""The perceptual loss: LPIPS or a custom distance, its frames, and the sources of its weights."""

from telecine.perceptual.alignment import Alignment as Alignment
from telecine.perceptual.frames import as_rgb as as_rgb
from telecine.perceptual.frames import pick_frames as pick_frames
from telecine.perceptual.frames import sample_frame_indices as sample_frame_indices
from telecine.perceptual.lpips import LPIPS as LPIPS
from telecine.perceptual.lpips import CustomDistance as CustomDistance
from telecine.perceptual.lpips import gram as gram
from telecine.perceptual.weights import CorruptWeightsError as CorruptWeightsError
from telecine.perceptual.weights import WeightsNotFoundError as WeightsNotFoundError
from telecine.perceptual.weights import WeightsSource as WeightsSource
from telecine.perceptual.weights import fetch as fetch
from telecine.perceptual.weights import load_backbone as load_backbone
from telecine.perceptual.weights import verify as verify

__all__ = [name for name in dir() if not name.startswith("_")]  # for the pages of the Python API
