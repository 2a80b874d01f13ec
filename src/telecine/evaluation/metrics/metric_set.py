"""The metrics of one evaluation, with their networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from telecine.base.shapes import Video
from telecine.evaluation.metrics.frechet import FeatureNetwork
from telecine.evaluation.metrics.metric import Metric
from telecine.evaluation.metrics.round_trips import RoundTrips


class Measure(Protocol):
    """Measures something on request."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """What it measures."""

    @property
    def method(self) -> str:
        """How it measures, for `protocol.json`."""


class ClipMeasure(Measure, Protocol):
    """Compares the reconstruction of one clip with its input, such as `WarpingError`."""

    def __call__(self, *, reconstruction: Video, target: Video) -> dict[str, float]:
        """Return the value of each metric by name.

        Args:
            reconstruction: The reconstruction of the clip, `(1, C, T, H, W)` in [-1, 1].
            target: The clip, of the same shape.
        """


class ModelMeasure(Measure, Protocol):
    """Reconstructs one clip in its way, such as `TilingDifference`."""

    def __call__(self, target: Video) -> dict[str, float]:
        """Return the value of each metric by name.

        Args:
            target: The clip, `(1, C, T, H, W)` in [-1, 1].
        """


@dataclass(frozen=True)
class MetricSet:
    """The metrics of one evaluation."""

    pixel_metrics: Sequence[str]
    """Names of metrics of pixel values."""
    perceptual: Mapping[str, nn.Module]
    """LPIPS modules by metric name."""
    feature_network: FeatureNetwork | None
    """The network of the Frechet distance."""
    methods: Mapping[str, str]
    """How a metric is measured: the weights of its network, or its method, by metric name; in `protocol.json`, the key
    is `backbones`."""
    absent: Mapping[str, str]
    """The reason for each metric that cannot be measured."""
    per_clip_frechet: bool = False
    """Whether the Frechet distance is that of sets of one clip each."""
    clip_measures: Sequence[ClipMeasure] = ()
    """What is measured of reconstructions, on request."""
    model_measures: Sequence[ModelMeasure] = ()
    """What is measured of the model, on request."""
    round_trips: RoundTrips | None = None
    """Measures the model in several passes, on request. Its values form a curve."""
