"""The picture of `outcome.py`: the metrics of each run, and frames of its reconstructions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from matplotlib.figure import Figure

# Colours of Okabe and Ito, which colour-blind people can distinguish. The markers differ as well.
STYLES = (
    ("#707070", "X"),
    ("#000000", "s"),
    ("#d55e00", "o"),
    ("#cc79a7", "D"),
    ("#e69f00", "P"),
    ("#0072b2", "^"),
    ("#009e73", "v"),
)
X, Y = "psnr", "lpips_alex"
LABELS = {X: "PSNR, dB", Y: "LPIPS-Alex"}

Points = Mapping[tuple[str, int], Mapping[str, float]]


def draw(
    points: Points, pictures: Mapping[str, Any], path: str, *, base: str, outliers: Collection[str], tolerance: float
) -> None:
    """Draw every run as a point, and below them a column of frames for each objective.

    Args:
        points: Metrics by objective and seed.
        pictures: A column of frames by its title, or `None` if there are none.
        path: Path of the picture.
        base: The objective that the right panel compares the others with, seed by seed.
        outliers: Objectives that are left out of the right panel.
        tolerance: Acceptable loss of PSNR, in dB.
    """
    figure = Figure(figsize=(11, 9), dpi=100, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1])
    names = list(dict.fromkeys(name for name, _ in points))
    styles = dict(zip(names, STYLES, strict=False))
    left, right = above.subplots(1, 2)
    draw_runs(left, points, styles)
    left.set_title("every run", fontsize=10)
    left.legend(fontsize=8)
    draw_runs(right, differences(points, base), {name: styles[name] for name in names if name not in (base, *outliers)})
    right.set_title(f"difference to {base} with the same seed; large: mean", fontsize=10)
    shade_goal(right, tolerance)
    draw_frames(below, pictures)
    figure.savefig(path)


def differences(points: Points, base: str) -> Points:
    """Return each run's metrics minus those of the base with the same seed, for seeds that have both."""
    return {
        (name, seed): {metric: run[metric] - points[base, seed][metric] for metric in (X, Y)}
        for (name, seed), run in points.items()
        if (base, seed) in points
    }


def draw_runs(axes: Any, points: Points, styles: Mapping[str, tuple[str, str]]) -> None:
    """Draw each run as a small point, and the mean of each objective as a large one."""
    for name, (colour, marker) in styles.items():
        pairs = [(run[X], run[Y]) for (objective, _), run in points.items() if objective == name]
        xs, ys = zip(*pairs, strict=True)
        style = {"color": colour, "marker": marker}
        axes.scatter(xs, ys, s=22, alpha=0.5, linewidths=0, **style)
        axes.scatter(
            sum(xs) / len(xs), sum(ys) / len(ys), s=90, edgecolors="white", linewidths=1, label=name, zorder=3, **style
        )
    axes.set_xlabel(f"{LABELS[X]}: right is better")
    axes.set_ylabel(f"{LABELS[Y]}: down is better")
    axes.grid(alpha=0.3)


def shade_goal(axes: Any, tolerance: float) -> None:
    """Shade the region where LPIPS falls and PSNR falls by at most the tolerance."""
    for line in (axes.axhline, axes.axvline):
        line(0, color="black", linewidth=0.8)
    axes.margins(0.1)
    limits = axes.get_xlim(), axes.get_ylim()
    (_, right), (bottom, _) = limits
    axes.fill_between([-tolerance, max(right, 0)], [min(bottom, 0)] * 2, 0, color="#009e73", alpha=0.12, linewidth=0)
    axes.set(xlim=limits[0], ylim=limits[1])


def draw_frames(figure: Any, pictures: Mapping[str, Any]) -> None:
    """Draw each column of frames."""
    for axes, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.set_title(title.replace(", ", ",\n"), fontsize=8)
        axes.set_axis_off()
        if picture is not None:
            axes.imshow(picture, interpolation="nearest")
