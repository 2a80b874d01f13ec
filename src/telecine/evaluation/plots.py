"""Plots of an evaluation, and of the comparison of two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from telecine.base.files import atomic_write
from telecine.evaluation.definitions import DEFINITIONS
from telecine.evaluation.difference import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FrameCurves = Mapping[str, Sequence[float]]

PANEL_WIDTH = 3.6
# Minimum height of a panel's value range, so that imperceptible differences look small.
MIN_RANGE = {"psnr": 1.0}
DEFAULT_MIN_RANGE = 0.01
ROW_HEIGHT = 0.62
# Distinguishable with red-green colour blindness.
COLOURS = {"A": "#d55e00", "B": "#0072b2", "undecided": "#707070"}


def plot_frames(curves: Mapping[str, FrameCurves], path: Path) -> None:
    """Plot each metric over the frame position in a clip, one line per evaluation, and write a PNG atomically.

    Args:
        curves: The values of each metric by frame position, by the label of the evaluation (empty for a single one).
        path: The PNG.
    """
    from matplotlib.figure import Figure  # takes a second to import, which `telecine --help` must not spend

    names = list(dict.fromkeys(name for evaluation in curves.values() for name in evaluation))
    figure = Figure(figsize=(PANEL_WIDTH * len(names), 3), dpi=100, layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False).flat, strict=True):
        _plot_metric(axes, name, curves)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def _plot_metric(axes: Axes, name: str, curves: Mapping[str, FrameCurves]) -> None:
    for label, evaluation in curves.items():
        if name in evaluation:
            positions = range(len(evaluation[name]))
            axes.plot(positions, evaluation[name], marker="o", markersize=3, label=label, color=COLOURS.get(label))
    _widen(axes, MIN_RANGE.get(name, DEFAULT_MIN_RANGE))
    axes.set_title(f"{name}, {DEFINITIONS[name].better} is better", fontsize=9)
    axes.set_xlabel("frame of the clip", fontsize=8)
    axes.locator_params(axis="x", integer=True)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if any(curves):
        axes.legend(fontsize=8)


def _widen(axes: Axes, min_range: float) -> None:
    low, high = axes.get_ylim()
    missing = max(0.0, min_range - (high - low)) / 2
    axes.set_ylim(low - missing, high + missing)


def plot_differences(differences: Sequence[Difference], title: str, path: Path) -> None:
    """Plot each metric's difference with its interval on a separate axis, and write a PNG atomically.

    Values for which B is better are to the right of 0.

    Args:
        differences: The differences. Those without an interval are points.
        title: The title.
        path: The PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + ROW_HEIGHT * len(differences)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    rows = figure.subplots(len(differences), 1, squeeze=False).flat
    for difference, axes in zip(differences, rows, strict=True):
        _plot_difference(axes, difference)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def _plot_difference(axes: Axes, difference: Difference) -> None:
    low, high = difference.interval or (difference.mean, difference.mean)
    colour = COLOURS[difference.better]
    axes.axvline(0, color="black", linewidth=0.8)
    axes.plot([low, high], [0, 0], color=colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot([difference.mean], [0], marker="o", markersize=6, color=colour)
    limit = 1.25 * max(abs(low), abs(high))
    limit = limit if 0 < limit < math.inf else 1.0  # 0 if the figures are equal; NaN is shown as text
    axes.set_xlim((-limit, limit) if difference.larger_is_better else (limit, -limit))
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.set_ylabel(difference.name, rotation=0, ha="right", va="center", fontsize=9)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.text(1.01, 0.5, difference.text(), transform=axes.transAxes, fontsize=8, va="center", color=colour)
