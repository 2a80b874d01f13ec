"""Reconstruction quality of video autoencoders, with the protocol of each measurement."""

from telecine.evaluation.metrics import ReconstructionMetrics, mean_over_clips
from telecine.evaluation.protocol_file import EvaluationRecord

__all__ = ["EvaluationRecord", "ReconstructionMetrics", "mean_over_clips"]
