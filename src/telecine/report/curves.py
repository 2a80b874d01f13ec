"""The curves of a run on one picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from telecine.files import write_aside

Record = Mapping[str, float]


@dataclass(frozen=True)
class Panel:
    """One plot: a title, and series as label -> (name in the record, transformation)."""

    title: str
    series: Mapping[str, tuple[str, Callable[[float], float]]]
    scale: Literal["linear", "log", "wide"] = "linear"
    """"log" leaves out what is not above 0; "wide" is linear where that will do, and else logarithmic on both sides of
    0."""
    empty: str = "no data yet"
    """What stands in it without data."""


def _same(value: float) -> float:
    return value


def psnr_of_mse(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of values in [-1, 1]."""
    return 10 * math.log10(4 / max(mse, 1e-10))


def _by_name(*names: str) -> dict[str, tuple[str, Callable[[float], float]]]:
    """Return series that are labelled as the log names them."""
    return {name: (f"train/{name}", _same) for name in names}


# What an objective may have besides; only what is logged is drawn. Likelihoods may be negative.
OTHER_TERMS = (
    "gram_loss",
    "wavelet_loss",
    "temporal_loss",
    "feature_matching_loss",
    "lecam_loss",
    "nll_loss",
    "logvar",
    "kl_loss",
)
# The weights of the objective, which are logged where they change over the steps.
WEIGHTS = (
    "perceptual_weight",
    "gram_loss_weight",
    "wavelet_loss_weight",
    "temporal_loss_weight",
    "adversarial_loss_weight",
    "multiscale_adversarial_loss_weight",
    "feature_matching_loss_weight",
    "grad_penalty_loss_weight",
    "lecam_loss_weight",
    "quantizer_aux_loss_weight",
)
PANELS = (
    Panel(
        "PSNR (dB), larger is better",
        {"training": ("train/mse", psnr_of_mse), "held out": ("val/psnr", _same)},
    ),
    Panel(
        "LPIPS, smaller is better",
        {"training": ("train/perceptual_loss", _same), "held out, Alex": ("val/lpips_alex", _same)},
    ),
    Panel("SSIM, larger is better", {"held out": ("val/ssim", _same)}),
    Panel(
        "discriminator: mean logits",
        {
            "real": ("train/logits_real", _same),
            "reconstruction": ("train/logits_fake", _same),
            "spread, real": ("train/logits_real_std", _same),
            "spread, reconstruction": ("train/logits_fake_std", _same),
        },
    ),
    Panel(
        "discriminator: share judged right",
        {
            "real": ("train/accuracy_real", _same),
            "reconstruction": ("train/accuracy_fake", _same),
            "hinge that is active": ("train/hinge_active", _same),
        },
    ),
    Panel(
        "adversarial term",
        {
            "generator loss": ("train/gen_loss", _same),
            "discriminator loss": ("train/discr_loss", _same),
            "gradient penalty": ("train/grad_penalty_loss", _same),
        },
    ),
    Panel(
        "adaptive weight and gradient norms",
        {
            "adaptive weight": ("train/adaptive_weight", _same),
            "autoencoder's gradient": ("train/grad_norm", _same),
            "discriminators' gradient": ("train/disc_grad_norm", _same),
        },
        scale="log",
    ),
    Panel(
        "update over weights",
        {
            "autoencoder": ("train/update_ratio", _same),
            "discriminators": ("train/disc_update_ratio", _same),
        },
        scale="log",
    ),
    Panel(
        "gradients: share of ...",
        {
            "the adversarial terms": ("train/adversarial_gradient_share", _same),
            "updates clipped, autoencoder": ("train/grad_clipped", _same),
            "updates clipped, discriminators": ("train/disc_grad_clipped", _same),
            "updates skipped, autoencoder": ("train/grad_overflow", _same),
            "updates skipped, discriminators": ("train/disc_grad_overflow", _same),
        },
    ),
    Panel("other terms, without their weights", _by_name(*OTHER_TERMS), scale="wide"),
    Panel("weights that change", _by_name(*WEIGHTS), scale="wide", empty="none changes"),
    Panel("learning rate", {"autoencoder": ("train/lr", _same)}),
)
# The gradient of each frame is one value a frame; the page has them on one plot.
FRAME_GRADIENT = "train/frame_gradient_"
NUM_COLUMNS = 3
# Largest ratio of two values that can be told on a linear axis.
LINEAR_RANGE = 100
# A logarithmic axis on both sides of 0 has to be linear around it.
LINEAR_BELOW = 1e-3
# More series than this need a legend in two columns.
LONG_LEGEND = 5


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Draw metrics, logits, losses, weights, gradient norms and the learning rate over the steps into a PNG.

    Args:
        records: Lines of `metrics.jsonl`; a panel without data stays empty and says so.
        path: Where the picture goes; written aside and renamed.
    """
    from matplotlib.figure import Figure  # a second to import, so not with the command line

    num_rows = -(-len(PANELS) // NUM_COLUMNS)
    figure = Figure(figsize=(5 * NUM_COLUMNS, 3.4 * num_rows), dpi=100, layout="constrained")
    for panel, axes in zip(PANELS, figure.subplots(num_rows, NUM_COLUMNS).flat, strict=True):
        _draw(panel, axes, records)
    write_aside(path, lambda aside: figure.savefig(aside, format="png"))


def _draw(panel: Panel, axes: Any, records: Sequence[Record]) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(alpha=0.3)
    drawn = [_draw_series(axes, label, records, *series, panel) for label, series in panel.series.items()]
    values = [value for series in drawn for value in series]
    if values:
        axes.set_yscale(**_scale(panel, values))
        is_long = sum(map(bool, drawn)) > LONG_LEGEND
        axes.legend(fontsize=7 if is_long else 8, ncols=2 if is_long else 1, framealpha=0.6)
    else:
        axes.text(0.5, 0.5, panel.empty, ha="center", va="center", transform=axes.transAxes)


def _draw_series(
    axes: Any, label: str, records: Sequence[Record], name: str, transform: Callable[[float], float], panel: Panel
) -> list[float]:
    """Draw one series and return its values, none if there are none."""
    points = [
        (record["step"], transform(record[name])) for record in records if math.isfinite(record.get(name, math.nan))
    ]
    if panel.scale == "log":
        points = [(step, value) for step, value in points if value > 0]
    if points:
        marker = "o" if name.startswith("val/") else None
        axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1.2)
    return [value for _, value in points]


def _scale(panel: Panel, values: Sequence[float]) -> dict[str, Any]:
    """Return the arguments of the vertical axis' scale."""
    if panel.scale != "wide":
        return {"value": panel.scale}
    sizes = [abs(value) for value in values if value != 0]
    if max(sizes, default=1) <= LINEAR_RANGE * min(sizes, default=1):
        return {"value": "linear"}
    return {"value": "symlog", "linthresh": LINEAR_BELOW}
