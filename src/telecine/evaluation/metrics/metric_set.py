"""The metrics of one evaluation, with their networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from telecine.base.shapes import Video
from telecine.evaluation.metrics.frechet import FeatureNetwork
from telecine.evaluation.metrics.registry import Metric


class Measure(Protocol):
    """Measures several metrics of a clip at once, on request."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics that it measures."""

    @property
    def method(self) -> str:
        """How they are measured, for `protocol.json`."""


class ReconstructionMeasure(Measure, Protocol):
    """Measures a reconstruction: the warping error."""

    def __call__(self, *, reconstruction: Video, target: Video) -> dict[str, float]:
        """Return the values of a clip `(1, C, T, H, W)` in [-1, 1] by the names of the metrics."""


class ModelMeasure(Measure, Protocol):
    """Measures an autoencoder, which reconstructs the clip in its own way: the difference of tiling."""

    def __call__(self, target: Video) -> dict[str, float]:
        """Return the values of a clip `(1, C, T, H, W)` in [-1, 1] by the names of the metrics."""


class PassMeasure(Measure, Protocol):
    """Measures an autoencoder that reconstructs the clip in several passes: round trips."""

    def __call__(self, target: Video) -> dict[str, list[float]]:
        """Return the values of a clip `(1, C, T, H, W)` in [-1, 1] after each pass, by name.

        The value of a metric is that of its name after the last pass. Other names are no metrics.
        """


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
    reconstruction_measures: Sequence[ReconstructionMeasure] = ()
    """Measures of reconstructions that options request."""
    model_measures: Sequence[ModelMeasure] = ()
    """Measures of the autoencoder that options request."""
    pass_measures: Sequence[PassMeasure] = ()
    """Measures of several passes that options request."""
