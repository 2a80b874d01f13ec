"""Charts of a page: curves of a size that a browser handles, and the data and scripts that draw them with plotly."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, TypedDict

from markupsafe import Markup

MAX_POINTS = 600
"""Most points of one curve, about the width of a screen."""


@dataclass(frozen=True)
class Curve:
    """The values of one run in a chart."""

    run: int
    """Index of the run."""
    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    """Finite values; of a long run the means of buckets of neighbours."""
    low: list[float] = field(default_factory=list)
    """Minima of the buckets; empty if `values` are not means."""
    high: list[float] = field(default_factory=list)
    """Maxima of the buckets."""
    first: float | None = None
    last: float | None = None
    num_left_out: int = 0
    """Number of values that are not finite."""

    @property
    def minimum(self) -> float:
        """The least value."""
        return min(self.low or self.values)

    @property
    def maximum(self) -> float:
        """The largest value."""
        return max(self.high or self.values)


@dataclass(frozen=True)
class Series:
    """One label of a chart, with a curve for each run that has it."""

    label: str
    key: str
    """Its name in the file of the values."""
    curves: list[Curve]
    is_reference: bool = False
    """Whether the others are compared with it, as with the linear baseline."""
    is_front: bool = False
    """Whether it is a Pareto front, drawn in steps: the best up to each position. Its curve belongs to no run."""
    is_smoothed: bool = False
    """Whether its curves are drawn with their moving average, as far as the reader chooses."""


@dataclass(frozen=True)
class XAxis:
    """The horizontal axis of a chart. Charts whose axes have the same label zoom together."""

    label: str
    scale: str = "linear"
    """"linear" or "log"."""
    names: Sequence[str] = ()
    """Names of the positions 0, 1, ..., whose values are not joined by lines; empty for numbers."""
    is_steps: bool = False
    """Whether positions are steps of a run, where its warnings are marked."""


STEPS = XAxis("step", is_steps=True)


@dataclass(frozen=True)
class Chart:
    """One chart of a page."""

    title: str
    series: list[Series]
    scale: str = "linear"
    """Vertical axis: "linear"; "log", without values that are not positive; or "wide", which is "log" if the positive
    values differ by a factor of more than 100."""
    explanation: str = ""
    note: str = ""
    """Why its curves do not compare; empty if they do."""
    x: XAxis = STEPS
    """The horizontal axis."""


@dataclass(frozen=True)
class Event:
    """Something at a step of a run that its charts mark, such as a warning."""

    run: int
    step: int
    text: str


class ChartsData(TypedDict):
    """What `charts.js` reads, as plain values."""

    runs: list[str]
    """Names of the runs, or models, that curves belong to."""
    file: str
    """Name of the file that has the values."""
    charts: list[dict[str, Any]]
    """The fields of each `Chart`."""
    events: list[dict[str, Any]]
    """The fields of each `Event`."""


def make_curve(run: int, points: Iterable[tuple[float, float]]) -> Curve:
    """Return points as a curve of at most `MAX_POINTS` values.

    More points are averaged in buckets of neighbours, with their minima and maxima, so that spikes stay visible.
    """
    steps = []
    values = []
    num_left_out = 0
    for step, value in points:
        if math.isfinite(value):
            steps.append(step)
            values.append(value)
        else:
            num_left_out += 1
    if not values:
        return Curve(run, num_left_out=num_left_out)

    first = _rounded(values[0])
    last = _rounded(values[-1])
    if len(values) <= MAX_POINTS:
        rounded = [_rounded(value) for value in values]
        return Curve(run, steps, rounded, first=first, last=last, num_left_out=num_left_out)

    curve = Curve(run, first=first, last=last, num_left_out=num_left_out)
    for index in range(MAX_POINTS):
        start = index * len(values) // MAX_POINTS
        end = (index + 1) * len(values) // MAX_POINTS
        bucket = values[start:end]
        curve.steps.append(steps[(start + end) // 2])
        curve.values.append(_rounded(sum(bucket) / len(bucket)))
        curve.low.append(_rounded(min(bucket)))
        curve.high.append(_rounded(max(bucket)))
    return curve


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")  # float32 has seven significant digits


def charts_data(
    charts: Sequence[Chart], *, runs: Sequence[str], file: str, events: Sequence[Event] = ()
) -> ChartsData:
    """Return what `charts.js` reads, as plain values.

    Args:
        charts: The charts, in the order of the page.
        runs: Names of the runs, or models, that curves belong to.
        file: Name of the file that has the values.
        events: What charts over steps mark.
    """
    return {
        "runs": list(runs),
        "file": file,
        "charts": [asdict(chart) for chart in charts],
        "events": [asdict(event) for event in events],
    }


@cache
def plotly_script() -> Markup:
    """Return plotly's JavaScript for a `<script>` of a page that works offline, 4.8 MB."""
    from plotly.offline import get_plotlyjs  # takes time that only pages need

    return Markup(get_plotlyjs())
