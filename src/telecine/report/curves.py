"""The panels in which the logged values of a run are plotted, and a PNG of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from telecine.base.files import atomic_write
from telecine.losses.reconstruction import psnr_of_mse
from telecine.report.names import (
    PERCEPTUAL_LOSS,
    TRAIN_LPIPS,
    TRAIN_PSNR,
    label_of,
    metric_label,
    plot_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, float]
Points = list[tuple[int, float]]
Columns = dict[str, Points]

NUM_COLUMNS = 3
# Maximum ratio of values that is readable on a linear axis.
MAX_LINEAR_RATIO = 100
# A symmetric logarithmic axis is linear around 0.
LINEAR_BELOW = 1e-3
# A legend with more entries has two columns.
MAX_LEGEND_ROWS = 5
# The line of the linear baseline, as on the page.
BASELINE: Mapping[str, Any] = {"linestyle": "--", "color": "grey"}
# Relative difference of values that are the same but for the order in which they were summed.
SAME = 1e-5


@dataclass(frozen=True)
class Panel:
    """One plot of several logged values."""

    title: str
    names: Sequence[str]
    """The values, as `columns_of` names them."""
    scale: Literal["linear", "log", "wide"] = "linear"
    """The vertical axis. "log" leaves out values that are not positive. "wide" is linear if the values are similar, and
    else logarithmic on both sides of 0."""


PSNR_PANEL = Panel("PSNR (dB), larger is better", (TRAIN_PSNR, "val/psnr", "linear/psnr"))
TRAINING_PANELS = (
    Panel("SSIM, larger is better", ("val/ssim", "linear/ssim")),
    Panel(
        "discriminator: logits",
        ("train/logits_real", "train/logits_fake", "train/logits_real_std", "train/logits_fake_std"),
    ),
    Panel("discriminator: fractions", ("train/accuracy_real", "train/accuracy_fake", "train/hinge_active")),
    Panel("adversarial losses", ("train/gen_loss", "train/discr_loss", "train/grad_penalty_loss")),
    Panel(
        "adaptive weight and gradient norms",
        ("train/adaptive_weight", "train/grad_norm", "train/disc_grad_norm"),
        scale="log",
    ),
    Panel("update norm / weight norm", ("train/update_ratio", "train/disc_update_ratio"), scale="log"),
    Panel(
        "fraction of the gradient, of the updates",
        (
            "train/adversarial_gradient_share",
            "train/grad_clipped",
            "train/disc_grad_clipped",
            "train/grad_overflow",
            "train/disc_grad_overflow",
        ),
    ),
)
LEARNING_RATE_PANEL = Panel("learning rate", ("train/lr",))
FIXED_NAMES = frozenset(name for panel in (PSNR_PANEL, *TRAINING_PANELS, LEARNING_RATE_PANEL) for name in panel.names)
# Sums of terms; the page shows them among all losses.
TOTALS = frozenset({"train/total_loss", "train/total_disc_loss"})


def panels(names: Collection[str]) -> list[Panel]:
    """Return the panels for the plotted names.

    They are fixed ones, one of LPIPS for each network, one of all other losses, and one of the scheduled weights.
    """
    others = sorted(name for name in names if name.startswith("train/") and name not in FIXED_NAMES)
    losses = [name for name in others if is_loss(name) and name not in {"train/mse", *TOTALS}]
    weights = [name for name in others if name.endswith("_weight")]
    metrics = sorted({name.partition("/")[2] for name in names if is_lpips(name)})
    lpips = [Panel(f"{metric_label(metric)}, smaller is better", by_source(metric)) for metric in metrics]
    every = [
        PSNR_PANEL,
        *lpips,
        *TRAINING_PANELS,
        Panel("other losses, unweighted", losses, scale="wide"),
        Panel("scheduled weights", weights, scale="wide"),
        LEARNING_RATE_PANEL,
    ]
    return [panel for panel in every if not set(panel.names).isdisjoint(names)]


def by_source(metric: str) -> tuple[str, str, str]:
    """Return the names of a metric of the training clips, the held-out clips and the linear baseline."""
    return (f"train/{metric}", f"val/{metric}", f"linear/{metric}")


def is_lpips(name: str) -> bool:
    """Return whether a value is an LPIPS. Those of different networks do not compare, and are never on one axis."""
    return name.startswith((TRAIN_LPIPS, "val/lpips_", "linear/lpips_"))


def is_loss(name: str) -> bool:
    """Return whether a plotted value is a loss without its weight, LPIPS aside."""
    prefix, _, rest = name.partition("/")
    return prefix == "train" and (
        rest in ("mse", "logvar", "aux_losses") or ("loss" in rest and not rest.endswith("_weight"))
    )


def columns_of(records: Iterable[Record], perceptual_net: str | None) -> Columns:
    """Return the finite and other (step, value) pairs of every name.

    Args:
        records: The records of a run.
        perceptual_net: The network of its perceptual loss, "vgg", "alex" or another; None if it is not known.
    """
    columns: Columns = {}
    for record in records:
        step = int(record["step"])
        for name, value in record.items():
            if name == PERCEPTUAL_LOSS and perceptual_net is not None:
                name = f"{TRAIN_LPIPS}{perceptual_net}"
            if name != "step":
                columns.setdefault(name, []).append((step, float(value)))
    if "train/mse" in columns:
        steps, errors = zip(*columns["train/mse"], strict=True)
        psnr = psnr_of_mse(torch.tensor(errors, dtype=torch.float64))
        columns[TRAIN_PSNR] = list(zip(steps, psnr.tolist(), strict=True))
    return columns


def duplicates(columns: Columns) -> set[str]:
    """Return the names of sums whose only term is logged, too: the term is plotted, and the sum is not.

    These are the reconstruction loss if it is the mean squared error, the auxiliary losses if there is one, and the
    discriminators' total without a penalty.
    """
    terms = [name for name in columns if name.startswith("train/") and name.endswith("_loss") and name not in TOTALS]
    candidates = {
        "train/recon_loss": ["train/mse"],
        "train/total_disc_loss": ["train/discr_loss"],
        "train/aux_losses": terms,
    }
    return {
        name
        for name, others in candidates.items()
        if any(_is_same(columns[name], columns.get(other, [])) for other in others if name in columns)
    }


def _is_same(some: Points, others: Points) -> bool:
    return len(some) == len(others) and all(
        a == b and math.isclose(x, y, rel_tol=SAME) for (a, x), (b, y) in zip(some, others, strict=True)
    )


def draw_curves(records: Sequence[Record], path: Path, perceptual_net: str | None = None) -> None:
    """Plot metrics, logits, losses, weights, gradient norms and the learning rate over the steps, as a PNG.

    Args:
        records: The records of `metrics.jsonl`. Panels without data are left out; without any, no file is written.
        path: The PNG, written atomically.
        perceptual_net: See `columns_of`.
    """
    from matplotlib.figure import Figure  # takes a second to import, which `telecine --help` must not spend

    columns = columns_of(records, perceptual_net)
    left_out = duplicates(columns)
    finite = {
        name: [(step, value) for step, value in points if math.isfinite(value)]
        for name, points in columns.items()
        if name not in left_out
    }
    drawn = [(panel, lines) for panel in panels(finite) if (lines := _lines(panel, finite))]
    if not drawn:
        return
    num_rows = -(-len(drawn) // NUM_COLUMNS)
    width, height = 5 * NUM_COLUMNS, 3.4 * num_rows
    figure = Figure(figsize=(width, height), dpi=100)
    # In inches, the same for every number of rows. A computed layout takes as long as the drawing.
    figure.subplots_adjust(
        left=0.7 / width,
        right=1 - 0.15 / width,
        bottom=0.5 / height,
        top=1 - 0.35 / height,
        wspace=0.2,
        hspace=0.35,
    )
    for index, (panel, lines) in enumerate(drawn, 1):
        _draw_panel(panel, figure.add_subplot(num_rows, NUM_COLUMNS, index), lines)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def _lines(panel: Panel, columns: Columns) -> Columns:
    """Return the points of a panel that its axis can show."""
    shown = {name: columns[name] for name in panel.names if name in columns}
    if panel.scale == "log":
        shown = {name: [(step, value) for step, value in points if value > 0] for name, points in shown.items()}
    return {name: points for name, points in shown.items() if points}


def _draw_panel(panel: Panel, axes: Axes, lines: Columns) -> None:
    axes.set_title(plot_label(panel.title), fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(alpha=0.3)
    for name, points in lines.items():
        marker = "o" if name.startswith("val/") else None
        style = BASELINE if name.startswith("linear/") else {}
        label = plot_label(label_of(name))
        axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1.2, **style)
    _set_scale(axes, panel, [value for points in lines.values() for _, value in points])
    is_long = len(lines) > MAX_LEGEND_ROWS
    axes.legend(fontsize=7 if is_long else 8, ncols=2 if is_long else 1, framealpha=0.6)


def _set_scale(axes: Axes, panel: Panel, values: Sequence[float]) -> None:
    """Set the vertical axis' scale."""
    sizes = [abs(value) for value in values if value != 0]
    if panel.scale != "wide":
        axes.set_yscale(panel.scale)
    elif max(sizes, default=1) <= MAX_LINEAR_RATIO * min(sizes, default=1):
        axes.set_yscale("linear")
    else:
        axes.set_yscale("symlog", linthresh=LINEAR_BELOW)
