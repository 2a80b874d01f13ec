"""The metrics of one evaluation, with their networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from telecine.evaluation.metrics.frechet import FeatureNetwork
from telecine.evaluation.metrics.measure import Measure


@dataclass(frozen=True)
class MetricSet:
    """The metrics of one evaluation."""

    pixel_metrics: Sequence[str]
    """Names of metrics of pixel values."""
    perceptual: Mapping[str, nn.Module]
    """LPIPS modules by metric name."""
    feature_network: FeatureNetwork | None
    """The network of the Frechet distance of all clips."""
    methods: Mapping[str, str]
    """How a metric is measured: the weights of its network, or its method, by metric name; in `protocol.json`, the key
    is `backbones`."""
    absent: Mapping[str, str]
    """The reason for each metric that cannot be measured."""
    measures: Sequence[Measure] = ()
    """What else is measured of each clip."""

    def with_measures(self, measures: Sequence[Measure]) -> "MetricSet":
        """Return these metrics and those of further measures."""
        methods = dict(self.methods)
        for measure in measures:
            for metric in measure.metrics:
                methods[metric.name] = measure.method
        return replace(self, measures=[*self.measures, *measures], methods=methods)
