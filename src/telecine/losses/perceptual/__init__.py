"""The perceptual loss: LPIPS or a custom distance, its frames, and the sources of its weights."""

from telecine.losses.perceptual.alignment import Alignment as Alignment
from telecine.losses.perceptual.frames import as_rgb as as_rgb
from telecine.losses.perceptual.frames import pick_frames as pick_frames
from telecine.losses.perceptual.frames import sample_frame_indices as sample_frame_indices
from telecine.losses.perceptual.lpips import LPIPS as LPIPS
from telecine.losses.perceptual.lpips import CustomDistance as CustomDistance
from telecine.losses.perceptual.lpips import gram as gram
from telecine.losses.perceptual.weights import CorruptWeightsError as CorruptWeightsError
from telecine.losses.perceptual.weights import WeightsNotFoundError as WeightsNotFoundError
from telecine.losses.perceptual.weights import WeightsSource as WeightsSource
from telecine.losses.perceptual.weights import fetch as fetch
from telecine.losses.perceptual.weights import load_backbone as load_backbone
from telecine.losses.perceptual.weights import verify as verify

__all__ = [name for name in dir() if not name.startswith("_")]  # for the pages of the Python API
