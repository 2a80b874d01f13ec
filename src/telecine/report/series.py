"""Logged values of several runs as plain data for the page, reduced to a size that a browser handles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypedDict

from telecine.report.curves import Columns, Panel, Points, columns_of, duplicates, is_loss, is_lpips, panels
from telecine.report.names import FRAME_GRADIENT, TRAIN_LPIPS, key_of, label_of
from telecine.report.run import ReportedRun
from telecine.report.summary import not_comparable

# Maximum number of points of one curve, about the width of a screen. A bucket of values is one point.
MAX_POINTS = 600
# Prefixes of values of the held-out clips.
HELD_OUT = ("val/", "linear/", "latent/")
# Significant digits of the values; float32 has seven.
DIGITS = 6


@dataclass(frozen=True)
class Curve:
    """The values of one name in one run, or the means of buckets of them."""

    run: int
    """The index of the run."""
    steps: list[int]
    values: list[float]
    """The values, or the mean of each bucket."""
    low: list[float] = field(default_factory=list)
    """The minimum of each bucket; empty without buckets."""
    high: list[float] = field(default_factory=list)
    """The maximum of each bucket; empty without buckets."""
    ends: list[float] = field(default_factory=list)
    """The first and the last value; empty without buckets."""
    num_left_out: int = 0
    """How many values were left out because they are not finite."""

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
    key: str
    """Its name in `metrics.jsonl`."""
    curves: list[Curve]


@dataclass(frozen=True)
class Plot:
    """A plot with its data."""

    title: str
    scale: str
    """Like `Panel.scale`."""
    series: list[Series]
    note: str = ""
    """Why its curves do not compare; empty if they do."""


class TableRow(TypedDict):
    """One curve as a row of the table on the page."""

    plot: str
    series: str
    key: str
    run: str
    first: float
    last: float
    min: float
    max: float
    num_left_out: int


def plots(runs: Sequence[ReportedRun]) -> list[Plot]:
    """Return the plots that have data: one of all losses, the `panels`, one of all frames' gradients, and one for each
    other name. A curve is left out if every run that has it also has its `duplicates`.
    """
    columns = [columns_of(run.records, run.perceptual_net) for run in runs]
    same = [duplicates(of_run) for of_run in columns]
    distinct = {name for of_run, left_out in zip(columns, same, strict=True) for name in of_run.keys() - left_out}
    names = sorted(name for name in distinct if any(_is_finite(of_run.get(name, [])) for of_run in columns))
    grouped = panels(names)
    lpips = [name for name in names if name.startswith(TRAIN_LPIPS)]
    losses = Panel("all losses", [*filter(is_loss, names), *(lpips if len(lpips) == 1 else [])], scale="wide")
    frames = Panel("gradient of each frame / mean", [name for name in names if name.startswith(FRAME_GRADIENT)])
    in_plots = {name for panel in (losses, *grouped, frames) for name in panel.names}
    singles = [Panel(label_of(name), [name]) for name in names if name not in in_plots and not is_lpips(name)]
    all_plots = (_plot(panel, columns, set(names)) for panel in (losses, *grouped, frames, *singles))
    notes = not_comparable([run.name for run in runs], [run.summary for run in runs]) if runs else []
    return [replace(plot, note=_note(plot, notes)) for plot in all_plots if plot.series]


def _note(plot: Plot, notes: Sequence[str]) -> str:
    """Return a note if a plot has held-out values of runs that do not compare."""
    compares = any(series.key.startswith(HELD_OUT) and len(series.curves) > 1 for series in plot.series)
    return f"Held-out values do not compare. {'; '.join(notes)}." if notes and compares else ""


def _is_finite(points: Points) -> bool:
    return any(math.isfinite(value) for _, value in points)


def as_curve(run: int, points: Points, max_points: int = MAX_POINTS) -> Curve:
    """Return (step, value) pairs as a curve of at most `max_points` points that keeps all extremes.

    Args:
        run: The index of the run.
        points: Pairs in the order of steps.
        max_points: With more values, neighbours are reduced to a bucket with their mean, minimum and maximum.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
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


def table(all_plots: Sequence[Plot], run_names: Sequence[str]) -> list[TableRow]:
    """Return the curves as rows of a table, for readers who do not see the plots."""
    return [
        {
            "plot": plot.title,
            "series": series.label,
            "key": series.key,
            "run": run_names[curve.run],
            "first": curve.first,
            "last": curve.last,
            "min": min(curve.low or curve.values),
            "max": max(curve.high or curve.values),
            "num_left_out": curve.num_left_out,
        }
        for plot in all_plots
        for series in plot.series
        for curve in series.curves
        if curve.values
    ]


def _plot(panel: Panel, columns: Sequence[Columns], names: set[str]) -> Plot:
    series = []
    for name in panel.names:
        curves = [as_curve(run, of_run[name]) for run, of_run in enumerate(columns) if name in of_run]
        if name in names and curves:
            series.append(Series(label_of(name), key_of(name), curves))
    return Plot(panel.title, panel.scale, series)


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
