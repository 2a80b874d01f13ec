"""The objective: what is added, with which weight, in which step."""

from telecine.objective.schedule import Ramp
from telecine.objective.video_autoencoder import VideoAutoencoderLoss

__all__ = ["Ramp", "VideoAutoencoderLoss"]
