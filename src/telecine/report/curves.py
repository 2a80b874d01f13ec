"""The panels in which the logged values of a run are plotted, and a PNG of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from telecine.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, float]
Transform = Callable[[float], float]

# Prefix of the logged gradient of each frame; the page plots all of them together.
FRAME_GRADIENT = "train/frame_gradient_"
NUM_COLUMNS = 3
# Maximum ratio of values that is readable on a linear axis.
MAX_LINEAR_RATIO = 100
# A symmetric logarithmic axis is linear around 0.
LINEAR_BELOW = 1e-3
# A legend with more entries has two columns.
MAX_LEGEND_ROWS = 5


@dataclass(frozen=True)
class Panel:
    """One plot of several logged values."""

    title: str
    series: Mapping[str, tuple[str, Transform]]
    """For each label, the name in the records and a transformation of the values."""
    scale: Literal["linear", "log", "wide"] = "linear"
    """The vertical axis. "log" leaves out values that are not positive. "wide" is linear if the values are similar, and
    else logarithmic on both sides of 0."""
    empty_text: str = "no data yet"
    """The text of a panel without data."""


def _identity(value: float) -> float:
    return value


def psnr_of_mse(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of values in [-1, 1]."""
    return 10 * math.log10(4 / max(mse, 1e-10))


def plain_series(names: Iterable[str]) -> dict[str, tuple[str, Transform]]:
    """Return series without a transformation, labelled with the names in the records less "train/"."""
    return {name.removeprefix("train/"): (name, _identity) for name in names}


FIXED_PANELS = (
    Panel(
        "PSNR (dB), larger is better",
        {
            "training": ("train/mse", psnr_of_mse),
            "held out": ("val/psnr", _identity),
            "linear": ("linear/psnr", _identity),
        },
    ),
    Panel(
        "LPIPS, smaller is better",
        {
            "training": ("train/perceptual_loss", _identity),
            "held out, Alex": ("val/lpips_alex", _identity),
            "linear, Alex": ("linear/lpips_alex", _identity),
        },
    ),
    Panel("SSIM, larger is better", {"held out": ("val/ssim", _identity), "linear": ("linear/ssim", _identity)}),
    Panel(
        "discriminator: mean logits",
        {
            "real": ("train/logits_real", _identity),
            "reconstruction": ("train/logits_fake", _identity),
            "std, real": ("train/logits_real_std", _identity),
            "std, reconstruction": ("train/logits_fake_std", _identity),
        },
    ),
    Panel(
        "discriminator: accuracy",
        {
            "real": ("train/accuracy_real", _identity),
            "reconstruction": ("train/accuracy_fake", _identity),
            "active hinge": ("train/hinge_active", _identity),
        },
    ),
    Panel(
        "adversarial losses",
        {
            "generator loss": ("train/gen_loss", _identity),
            "discriminator loss": ("train/discr_loss", _identity),
            "gradient penalty": ("train/grad_penalty_loss", _identity),
        },
    ),
    Panel(
        "adaptive weight and gradient norms",
        {
            "adaptive weight": ("train/adaptive_weight", _identity),
            "autoencoder's gradient": ("train/grad_norm", _identity),
            "discriminators' gradient": ("train/disc_grad_norm", _identity),
        },
        scale="log",
    ),
    Panel(
        "update norm / weight norm",
        {
            "autoencoder": ("train/update_ratio", _identity),
            "discriminators": ("train/disc_update_ratio", _identity),
        },
        scale="log",
    ),
    Panel(
        "gradients: fraction of ...",
        {
            "adversarial terms": ("train/adversarial_gradient_share", _identity),
            "clipped updates, autoencoder": ("train/grad_clipped", _identity),
            "clipped updates, discriminators": ("train/disc_grad_clipped", _identity),
            "skipped updates, autoencoder": ("train/grad_overflow", _identity),
            "skipped updates, discriminators": ("train/disc_grad_overflow", _identity),
        },
    ),
    Panel("learning rate", {"autoencoder": ("train/lr", _identity)}),
)
FIXED_NAMES = frozenset(name for panel in FIXED_PANELS for name, _ in panel.series.values())
# Sums of terms, and a term that the PSNR already shows.
NOT_OTHER_LOSSES = frozenset({"train/total_loss", "train/total_disc_loss", "train/recon_loss"})


def panels(names: Collection[str]) -> list[Panel]:
    """Return the panels for the logged names: fixed ones, one of all other losses, and one of the scheduled weights."""
    others = sorted(name for name in names if name.startswith("train/") and name not in FIXED_NAMES)
    losses = [
        name for name in others if name not in NOT_OTHER_LOSSES and (name.endswith("_loss") or name == "train/logvar")
    ]
    weights = [name for name in others if name.endswith("_weight")]
    *first, learning_rate = FIXED_PANELS
    return [
        *first,
        Panel("other losses, unweighted", plain_series(losses), scale="wide"),
        Panel("scheduled weights", plain_series(weights), scale="wide", empty_text="no weight changes"),
        learning_rate,
    ]


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Plot metrics, logits, losses, weights, gradient norms and the learning rate over the steps, as a PNG.

    Args:
        records: The records of `metrics.jsonl`. A panel without data contains a text.
        path: The PNG, written atomically.
    """
    from matplotlib.figure import Figure  # takes a second to import, which `telecine --help` must not spend

    drawn = panels({name for record in records for name in record})
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
    for panel, axes in zip(drawn, figure.subplots(num_rows, NUM_COLUMNS).flat, strict=True):
        _draw_panel(panel, axes, records)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))


def _draw_panel(panel: Panel, axes: Axes, records: Sequence[Record]) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(alpha=0.3)
    drawn = [_draw_series(axes, label, records, *series, panel) for label, series in panel.series.items()]
    values = [value for series in drawn for value in series]
    if values:
        _set_scale(axes, panel, values)
        is_long = sum(map(bool, drawn)) > MAX_LEGEND_ROWS
        axes.legend(fontsize=7 if is_long else 8, ncols=2 if is_long else 1, framealpha=0.6)
    else:
        axes.text(0.5, 0.5, panel.empty_text, ha="center", va="center", transform=axes.transAxes)


def _draw_series(
    axes: Axes, label: str, records: Sequence[Record], name: str, transform: Transform, panel: Panel
) -> list[float]:
    """Draw the finite values of one series and return them."""
    points = [
        (record["step"], transform(record[name])) for record in records if math.isfinite(record.get(name, math.nan))
    ]
    if panel.scale == "log":
        points = [(step, value) for step, value in points if value > 0]
    if points:
        marker = "o" if name.startswith("val/") else None
        style = "--" if name.startswith("linear/") else "-"
        axes.plot(*zip(*points, strict=True), style, label=label, marker=marker, markersize=3, linewidth=1.2)
    return [value for _, value in points]


def _set_scale(axes: Axes, panel: Panel, values: Sequence[float]) -> None:
    """Set the vertical axis' scale."""
    sizes = [abs(value) for value in values if value != 0]
    if panel.scale != "wide":
        axes.set_yscale(panel.scale)
    elif max(sizes, default=1) <= MAX_LINEAR_RATIO * min(sizes, default=1):
        axes.set_yscale("linear")
    else:
        axes.set_yscale("symlog", linthresh=LINEAR_BELOW)
