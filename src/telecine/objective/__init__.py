"""The objective: what is added, with which weight, in which step."""

from telecine.objective.video_autoencoder import Update, VideoAutoencoderLoss

__all__ = ["Update", "VideoAutoencoderLoss"]
