"""Quality of reconstructions, with the protocol that a figure was measured by."""

from telecine.evaluation.metrics import METRIC_DEFINITIONS, ReconstructionMetrics, mean_over_clips
from telecine.evaluation.protocol import EvaluationProtocol

__all__ = ["METRIC_DEFINITIONS", "EvaluationProtocol", "ReconstructionMetrics", "mean_over_clips"]
