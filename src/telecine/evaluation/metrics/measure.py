"""What measures a clip besides the metrics of pixels and the perceptual distances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from telecine.base.shapes import Video
from telecine.evaluation.metrics.metric import Metric


@dataclass(frozen=True)
class ClipValues:
    """The values of one clip."""

    values: Mapping[str, float]
    """The value of each metric by name."""
    per_pass: Mapping[str, list[float]] = field(default_factory=dict)
    """The values after each pass of round trips, by name; empty for other measures."""


class Measure(Protocol):
    """Measures some metrics of one clip, such as `WarpingError`."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """What it measures."""

    @property
    def method(self) -> str:
        """How it measures, for `protocol.json`."""

    def __call__(self, *, reconstruction: Video, target: Video) -> ClipValues:
        """Return the values of a clip.

        Args:
            reconstruction: The reconstruction of the clip, `(1, C, T, H, W)` in [-1, 1]. A measure that reconstructs
                the clip in another way does not use it.
            target: The clip, of the same shape.
        """
