"""Pictures of an evaluation and of a comparison of two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from telecine.evaluation.definitions import DEFINITIONS
from telecine.evaluation.difference import Difference
from telecine.files import write_aside

Curves = Mapping[str, Sequence[float]]

PANEL_WIDTH = 3.6
# Heights that a panel shows at least, so that differences nobody sees look small.
LEAST_HEIGHT = {"psnr": 1.0}
OTHER_LEAST_HEIGHT = 0.01
ROW_HEIGHT = 0.62
# Told apart by people who do not see red and green alike.
COLOURS = {"A": "#d55e00", "B": "#0072b2", "undecided": "#707070"}


def draw_frames(curves: Mapping[str, Curves], path: Path) -> None:
    """Draw each metric over the position in a clip, a line for each evaluation, into a PNG, written aside and renamed.

    Args:
        curves: By the evaluation's label (empty for one alone), a list of values for each metric.
        path: The picture.
    """
    from matplotlib.figure import Figure  # a second to import, so not with the command line

    names = list(dict.fromkeys(name for evaluation in curves.values() for name in evaluation))
    figure = Figure(figsize=(PANEL_WIDTH * len(names), 3), dpi=100, layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False).flat, strict=True):
        _draw_positions(axes, name, curves)
    write_aside(path, lambda aside: figure.savefig(aside, format="png"))


def _draw_positions(axes: Any, name: str, curves: Mapping[str, Curves]) -> None:
    for label, evaluation in curves.items():
        if name in evaluation:
            positions = range(len(evaluation[name]))
            axes.plot(positions, evaluation[name], marker="o", markersize=3, label=label, color=COLOURS.get(label))
    _widen(axes, LEAST_HEIGHT.get(name, OTHER_LEAST_HEIGHT))
    axes.set_title(f"{name}, {DEFINITIONS[name].better} is better", fontsize=9)
    axes.set_xlabel("frame of the clip", fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if any(curves):
        axes.legend(fontsize=8)


def _widen(axes: Any, least: float) -> None:
    low, high = axes.get_ylim()
    missing = max(0.0, least - (high - low)) / 2
    axes.set_ylim(low - missing, high + missing)


def draw_differences(differences: Sequence[Difference], title: str, path: Path) -> None:
    """Draw each metric's difference with its interval on an axis of its own, on which right means that B is better.

    Args:
        differences: What is drawn; those without an interval are points.
        title: What stands above.
        path: The picture, a PNG; written aside and renamed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + ROW_HEIGHT * len(differences)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    rows = figure.subplots(len(differences), 1, squeeze=False).flat
    for difference, axes in zip(differences, rows, strict=True):
        _draw_difference(axes, difference)
    write_aside(path, lambda aside: figure.savefig(aside, format="png"))


def _draw_difference(axes: Any, difference: Difference) -> None:
    low, high = difference.interval or (difference.mean, difference.mean)
    colour = COLOURS[difference.verdict]
    axes.axvline(0, color="black", linewidth=0.8)
    axes.plot([low, high], [0, 0], color=colour, linewidth=2.5, solid_capstyle="butt")
    axes.plot([difference.mean], [0], marker="o", markersize=6, color=colour)
    reach = 1.25 * max(abs(low), abs(high))
    reach = reach if 0 < reach < math.inf else 1.0  # equal figures, or NaN, which is written beside
    axes.set_xlim((-reach, reach) if difference.larger_is_better else (reach, -reach))
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.set_ylabel(difference.name, rotation=0, ha="right", va="center", fontsize=9)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.text(1.01, 0.5, difference.in_words(), transform=axes.transAxes, fontsize=8, va="center", color=colour)
