"""Curves as data for the page: every logged value of several runs, short enough for a browser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from telecine.report.curves import FRAME_GRADIENT, PANELS, Panel, Record

# Points of one curve; a screen is hardly wider. A bucket has four numbers.
MAX_POINTS = 600
# A float32 has seven digits; nobody reads more than these off a curve.
DIGITS = 6

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """The values of one name in one run, as they were or in buckets of neighbours."""

    run: int
    """Which of the runs."""
    steps: list[int]
    values: list[float]
    """Each value, or the mean of each bucket."""
    low: list[float] = field(default_factory=list)
    """The least value of each bucket; empty where there are no buckets."""
    high: list[float] = field(default_factory=list)
    """The greatest value of each bucket; empty where there are no buckets."""
    ends: list[float] = field(default_factory=list)
    """The first and the last value; empty where there are no buckets."""
    num_left_out: int = 0
    """How many values were not finite and have no place on a curve."""

    @property
    def first(self) -> float:
        """The first value."""
        return (self.ends or self.values)[0]

    @property
    def last(self) -> float:
        """The last value."""
        return (self.ends or self.values)[-1]


@dataclass(frozen=True)
class Series:
    """One label of a plot, with a curve for each run that logged it."""

    label: str
    name: str
    """Its key in `metrics.jsonl`."""
    curves: list[Curve]


@dataclass(frozen=True)
class Plot:
    """A plot with what was logged for it."""

    title: str
    scale: str
    """As `Panel.scale`."""
    series: list[Series]


def plots(runs: Sequence[Iterable[Record]]) -> list[Plot]:
    """Return the plots that have data: all loss terms together, those of `PANELS`, the gradients of all frames
    together, and one for each other value.
    """
    columns = [_columns(records) for records in runs]
    names = sorted(set().union(*columns))
    in_panels = {name for panel in PANELS for name, _ in panel.series.values()}
    terms = Panel("every loss term, on one scale", _unchanged(filter(_is_term, names)), scale="wide")
    by_frame = [name for name in names if name.startswith(FRAME_GRADIENT)]
    frames = Panel("gradient of each frame, 1 is an even share", _unchanged(by_frame))
    others = [name for name in names if name not in {*in_panels, *by_frame} and not _is_term(name)]
    singles = [Panel(name.removeprefix("train/"), _unchanged([name])) for name in others]
    drawn = (_plot(panel, columns) for panel in (terms, *PANELS, frames, *singles))
    return [plot for plot in drawn if plot.series]


def as_curve(run: int, points: Points, transform: Callable[[float], float], max_points: int = MAX_POINTS) -> Curve:
    """Return (step, value) pairs as a curve of at most `max_points` points, which keeps every extreme.

    Args:
        run: Which of the runs.
        points: In the order of steps.
        transform: Applied to each value.
        max_points: Where there are more, neighbours share a bucket with their mean, least and greatest value.
    """
    finite = [(step, transform(value)) for step, value in points if math.isfinite(value)]
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    num_left_out = len(points) - len(finite)
    if len(values) <= max_points:
        return Curve(run, steps, _rounded(values), num_left_out=num_left_out)
    ends = [index * len(values) // max_points for index in range(max_points + 1)]
    buckets = [slice(first, last) for first, last in pairwise(ends)]
    return Curve(
        run,
        [steps[(bucket.start + bucket.stop) // 2] for bucket in buckets],
        _rounded(sum(values[bucket]) / (bucket.stop - bucket.start) for bucket in buckets),
        _rounded(min(values[bucket]) for bucket in buckets),
        _rounded(max(values[bucket]) for bucket in buckets),
        _rounded([values[0], values[-1]]),
        num_left_out,
    )


def _plot(panel: Panel, columns: Sequence[Mapping[str, Points]]) -> Plot:
    series = []
    for label, (name, transform) in panel.series.items():
        curves = [as_curve(run, of_run[name], transform) for run, of_run in enumerate(columns) if name in of_run]
        if curves:
            series.append(Series(label, name, curves))
    return Plot(panel.title, panel.scale, series)


def _columns(records: Iterable[Record]) -> dict[str, Points]:
    """Return the (step, value) pairs of every name."""
    columns: dict[str, Points] = {}
    for record in records:
        step = int(record["step"])
        for name, value in record.items():
            if name != "step":
                columns.setdefault(name, []).append((step, float(value)))
    return columns


def _is_term(name: str) -> bool:
    return name == "train/mse" or (name.startswith("train/") and "loss" in name and not name.endswith("_weight"))


def _unchanged(names: Iterable[str]) -> dict[str, tuple[str, Callable[[float], float]]]:
    return {name.removeprefix("train/"): (name, lambda value: value) for name in names}


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def table(drawn: Sequence[Plot], run_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the curves show as rows of plain values, for those who do not see them."""
    return [
        {
            "plot": plot.title,
            "series": series.label,
            "run": run_names[curve.run],
            "first": curve.first,
            "last": curve.last,
            "least": min(curve.low or curve.values),
            "greatest": max(curve.high or curve.values),
            "left_out": curve.num_left_out,
        }
        for plot in drawn
        for series in plot.series
        for curve in series.curves
        if curve.values
    ]
