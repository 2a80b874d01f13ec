"""The objective: its terms, their weights, and its two steps."""

from telecine.objective.loss import BothLosses, VideoAutoencoderLoss

__all__ = ["BothLosses", "VideoAutoencoderLoss"]
