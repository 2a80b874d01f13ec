"""The metrics of one evaluation, with their networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from telecine.evaluation.metrics.flow import WarpingError
from telecine.evaluation.metrics.frechet import FeatureNetwork
from telecine.evaluation.metrics.round_trips import RoundTrips
from telecine.evaluation.metrics.tiling import TilingDifference


@dataclass(frozen=True)
class MetricSet:
    """The metrics of one evaluation."""

    pixel_metrics: Sequence[str]
    """Names of metrics of pixel values."""
    perceptual: Mapping[str, nn.Module]
    """LPIPS modules by metric name."""
    features: FeatureNetwork | None
    """The network of the Frechet distance."""
    methods: Mapping[str, str]
    """The weights of a metric's network, or its method, by metric name: `backbones` in `protocol.json`."""
    absent: Mapping[str, str]
    """The reason for each metric that cannot be measured."""
    per_clip_frechet: bool = False
    """Whether the Frechet distance is that of sets of one clip each."""
    warping: WarpingError | None = None
    """Measures the motion of reconstructions, on request."""
    tiling: TilingDifference | None = None
    """Compares chunks and tiles with whole clips, on request."""
    round_trips: RoundTrips | None = None
    """Measures several passes, on request."""
