"""What a metric is: its name, definition, unit and smallest clip; and the registry of all metrics by name.

A metric is defined once, with `register`, beside the function that computes it; `__init__.py` lists these modules.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from torch import Tensor

Better: TypeAlias = Literal["larger", "smaller", "nearest to 0", "nearest to 1"]


@dataclass(frozen=True)
class Direction:
    """What a value of `Better` means."""

    arrow: str
    """The sign behind the name of a metric in tables."""
    best: float
    """The best value; infinite if there is no limit."""

    @property
    def has_limit(self) -> bool:
        """Whether a number is best, so that metrics are compared by their distance from it."""
        return math.isfinite(self.best)

    @property
    def larger_is_better(self) -> bool:
        """Whether larger values are better, without a limit."""
        return self.best == math.inf

    def badness(self, value: float) -> float:
        """Return a number that is smallest for the best value."""
        if self.has_limit:
            return abs(value - self.best)
        return -value if self.larger_is_better else value


DIRECTIONS: dict[Better, Direction] = {
    "larger": Direction("↑", best=math.inf),
    "smaller": Direction("↓", best=-math.inf),
    "nearest to 0": Direction("→ 0", best=0.0),
    "nearest to 1": Direction("→ 1", best=1.0),
}
"""Each value of `Better`, for the tables, comparisons and pages that read it."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The definition of a metric, and the smallest clip that it is defined for."""

    name: str
    definition: str
    """Formula, settings and source."""
    label: str = ""
    """What pages call it, if not by its name."""
    unit: str = ""
    """For example "dB". Empty for a number without a unit."""
    averaging: str = "mean over clips"
    """How values become one number. Empty if the definition says it."""
    better: Better = "larger"
    """Which values are better."""
    min_side: int = 1
    """Smallest height and width of a frame."""
    min_frames: int = 1
    """Smallest number of frames of a clip."""
    is_per_clip: bool = True
    """Whether each clip has a value. False: only the whole set, or the model, has one."""

    @property
    def direction(self) -> Direction:
        """What `better` means."""
        return DIRECTIONS[self.better]

    def describe(self, averaging: str | None = None) -> str:
        """Return the text of the metric in `protocol.json`, with another averaging if one is passed."""
        if averaging is None:
            averaging = self.averaging
        parts = [self.unit, self.definition, averaging, f"{self.better} is better"]
        return "; ".join(part for part in parts if part)

    def unavailable_reason(self, num_frames: int, height: int, width: int) -> str | None:
        """Return why the metric is undefined for clips of this size, or None if it is defined.

        Args:
            num_frames: Frames of a clip.
            height: Height of a frame in pixels.
            width: Width of a frame in pixels.
        """
        if min(height, width) < self.min_side:
            return f"needs frames of at least {self.min_side} x {self.min_side}, not {height} x {width}"
        if num_frames < self.min_frames:
            return f"needs at least {self.min_frames} frames, not {num_frames}"
        return None


@dataclass(frozen=True, kw_only=True)
class PixelMetric(Metric):
    """A metric that a function of pixel values computes: a `ClipMetric` or a `FrameMetric`."""

    function: Callable[..., Tensor]
    """Called with `reconstruction` and `target` of one shape in [-1, 1]."""
    is_default: bool = False
    """Whether it is measured without a published protocol."""


@dataclass(frozen=True, kw_only=True)
class ClipMetric(PixelMetric):
    """A metric of whole clips: its function maps `(B, C, T, H, W)` to `(B,)`."""

    frame_function: Callable[..., Tensor] | None = None
    """Maps single frames `(N, C, H, W)` to `(N,)`, for the curve over frames. None: it has no such curve."""
    needs_alpha: bool = False
    """Whether it is measured of RGBA, and only of RGBA."""


@dataclass(frozen=True, kw_only=True)
class FrameMetric(PixelMetric):
    """A metric of single frames: its function maps RGB `(N, 3, H, W)` to `(N,)`. The value of a clip is their mean."""


METRICS: dict[str, Metric] = {}
"""All metrics by name. `telecine.evaluation.metrics` imports the modules that register them."""

_MetricT = TypeVar("_MetricT", bound=Metric)


def register(metric: _MetricT) -> _MetricT:
    """Add a metric to `METRICS` and return it."""
    METRICS[metric.name] = metric
    return metric
