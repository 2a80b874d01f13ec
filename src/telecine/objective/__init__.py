"""The objective: its terms, their weights, and its two steps."""

from telecine.objective.loss import Update, VideoAutoencoderLoss

__all__ = ["Update", "VideoAutoencoderLoss"]
