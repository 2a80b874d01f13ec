"""Plots of evaluations: metrics over the frames of a clip, and over the passes of round trips."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from telecine.base.files import atomic_write
from telecine.evaluation.metrics.metric import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable with red-green colour blindness.
COLOURS = {"A": "#d55e00", "B": "#0072b2", "undecided": "#707070"}


def plot_passes(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Plot the values after each pass of round trips, those of all channels together; write a PNG atomically.

    Args:
        curves: The values after each pass, by name, see `RoundTrips`.
        path: The file.
    """
    from matplotlib.figure import Figure  # as in `plot_frames`

    metrics = [name for name in curves if name in METRICS]
    channels = [name for name in curves if name not in METRICS]
    figure = Figure(figsize=(3.6 * (1 + len(metrics)), 3), dpi=100, layout="constrained")
    subplots = figure.subplots(1, 1 + len(metrics), squeeze=False)[0]
    for name, axes in zip(metrics, subplots[1:], strict=True):
        axes.plot(range(1, 1 + len(curves[name])), curves[name], marker="o", markersize=3)
        axes.set_title(f"{name}, {METRICS[name].better} is better", fontsize=9)
    for name in channels:
        colour = name if name in ("red", "green", "blue") else None
        positions = range(1, 1 + len(curves[name]))
        subplots[0].plot(
            positions, curves[name], marker="o", markersize=3, label=name, color=colour
        )
    subplots[0].set_title("change of the mean, levels of 8 bits", fontsize=9)
    subplots[0].legend(fontsize=8)
    for axes in subplots:
        axes.set_xlabel("pass", fontsize=8)
        axes.locator_params(axis="x", integer=True)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def plot_frames(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Plot each metric over the frame position in a clip, a line for each evaluation; write a PNG atomically.

    Args:
        curves: For each label of an evaluation, its values at each frame position, by metric.
        path: The file.
    """
    # Takes a second to import, which `telecine --help` must not spend.
    from matplotlib.figure import Figure

    names: list[str] = []
    for evaluation in curves.values():
        for name in evaluation:
            if name not in names:
                names.append(name)
    figure = Figure(figsize=(3.6 * len(names), 3), dpi=100, layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False).flat, strict=True):
        _plot_metric(axes, name, curves)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def _plot_metric(
    axes: "Axes", name: str, curves: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    for label, evaluation in curves.items():
        if name in evaluation:
            positions = range(len(evaluation[name]))
            axes.plot(
                positions,
                evaluation[name],
                marker="o",
                markersize=3,
                label=label,
                color=COLOURS.get(label),
            )
    low, high = axes.get_ylim()
    smallest_range = 1.0 if name == "psnr" else 0.01  # so that imperceptible differences look small
    margin = max(0.0, smallest_range - (high - low)) / 2
    axes.set_ylim(low - margin, high + margin)
    axes.set_title(f"{name}, {METRICS[name].better} is better", fontsize=9)
    axes.set_xlabel("frame of the clip", fontsize=8)
    axes.locator_params(axis="x", integer=True)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if any(curves):
        axes.legend(fontsize=8)
