"""The picture of `outcome.py`: what each run reached, and what its reconstructions look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

# Told apart by people who do not see red and green alike (Okabe and Ito), and in grey by their marks.
STYLES = (
    ("#707070", "X"),
    ("#000000", "s"),
    ("#d55e00", "o"),
    ("#cc79a7", "D"),
    ("#e69f00", "P"),
    ("#0072b2", "^"),
    ("#009e73", "v"),
)
PANELS = {
    ("psnr", "lpips_alex"): ("PSNR, dB: more is better", "LPIPS-Alex: less is better"),
    ("sharpness", "flicker"): ("sharpness: 1 is the input's", "flicker: less is better"),
}


def draw(points: Mapping[tuple[str, int], Mapping[str, float]], pictures: Mapping[str, Any], path: str) -> None:
    """Draw every run's metrics as points, above one column of frames for each objective.

    Args:
        points: Metrics by objective and seed.
        pictures: Frames below each other by the column's title; None where there are none.
        path: The picture to write.
    """
    figure = Figure(figsize=(11, 9.4), dpi=90, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.05])
    names = list(dict.fromkeys(name for name, _ in points))
    for axes, ((x, y), labels) in zip(above.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name, (colour, marker) in zip(names, STYLES, strict=True):
            draw_runs(axes, [(run[x], run[y]) for (own, _), run in points.items() if own == name], name, colour, marker)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.grid(alpha=0.3)
    above.axes[0].legend(fontsize=8)
    for axes, (title, picture) in zip(below.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.set_title(title.replace(", ", ",\n"), fontsize=8)
        axes.set_axis_off()
        if picture is not None:
            axes.imshow(picture, interpolation="nearest")
    figure.savefig(path)


def draw_runs(axes: Any, values: list[tuple[float, float]], name: str, colour: str, marker: str) -> None:
    """Draw each run of an objective small, and their mean large."""
    xs, ys = zip(*values, strict=True)
    axes.scatter(xs, ys, s=22, color=colour, marker=marker, alpha=0.45, linewidths=0)
    mean = sum(xs) / len(xs), sum(ys) / len(ys)
    axes.scatter(*mean, s=90, color=colour, marker=marker, edgecolors="white", linewidths=1, label=name, zorder=3)
