"""Reconstruction quality of video autoencoders, with the protocol of each measurement."""

from telecine.evaluation.evaluation_record import EvaluationRecord
from telecine.evaluation.metrics import ReconstructionMetrics, mean_over_clips

__all__ = ["EvaluationRecord", "ReconstructionMetrics", "mean_over_clips"]
