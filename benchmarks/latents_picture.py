"""The picture of `latents.py`: the figure that each term is for, and its cost in PSNR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

PSNR = "PSNR, dB"
# The figure that each term is for.
FIGURES = {
    "equivariance": "equivariance error, MSE",
    "scale_equivariance": "scale_1/2",
    "local_correlation": "correlation of neighbours",
    "latent_masking": "effective rank",
    "latent_noise": "PSNR with noise 0.2, dB",
    "alignment": "alignment, cosine",
}
TITLES = {"scale_1/2": "equivariance error of a scale of 1/2, MSE"}
# Colours of Okabe and Ito, which colour-blind people can distinguish. The markers differ as well.
WITHOUT, WITH = ("#707070", "X"), ("#0072b2", "o")
COLUMNS = 3

Points = Mapping[tuple[str, int], Mapping[str, float]]


def draw(found: Points, path: str, *, base: str, terms: Sequence[str]) -> None:
    """Draw a panel for each term: every run with and without it as a small point, and their means as large ones.

    Args:
        found: Measures by term and seed.
        path: Path of the picture.
        base: The name of the runs without a term.
        terms: The terms.
    """
    num_rows = -(-len(terms) // COLUMNS)
    num_columns = min(len(terms), COLUMNS)
    figure = Figure(figsize=(3.7 * num_columns, 3.4 * num_rows), dpi=100, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, term in zip(panels, terms, strict=False):
        draw_term(axes, found, base, term)
    for axes in panels[len(terms) :]:
        axes.set_axis_off()
    figure.savefig(path)


def draw_term(axes: Any, found: Points, base: str, term: str) -> None:
    """Draw the runs with and without a term, and an arrow from mean to mean."""
    measure = FIGURES[term]
    means = []
    for name, (colour, marker) in ((base, WITHOUT), (term, WITH)):
        runs = [run for (of, _), run in found.items() if of == name]
        xs, ys = ([run[column] for run in runs] for column in (PSNR, measure))
        style = {"color": colour, "marker": marker}
        axes.scatter(xs, ys, s=22, alpha=0.5, linewidths=0, **style)
        means.append((sum(xs) / len(xs), sum(ys) / len(ys)))
        axes.scatter(*means[-1], s=90, edgecolors="white", linewidths=1, label=name, zorder=3, **style)
    axes.annotate("", means[1], means[0], arrowprops={"arrowstyle": "->", "color": "black", "shrinkA": 6, "shrinkB": 6})
    axes.margins(0.2)
    axes.set_xlabel(f"{PSNR}: right is better")
    axes.set_ylabel(TITLES.get(measure, measure), fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
