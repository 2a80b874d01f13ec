"""The curves of a run on one picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telecine.files import write_aside

Record = Mapping[str, float]


@dataclass(frozen=True)
class Panel:
    """One plot: a title, and series as label -> (name in the record, transformation)."""

    title: str
    series: Mapping[str, tuple[str, Callable[[float], float]]]
    log_scale: bool = False


def _same(value: float) -> float:
    return value


def psnr_of_mse(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of values in [-1, 1]."""
    return 10 * math.log10(4 / max(mse, 1e-10))


PANELS = (
    Panel(
        "PSNR (dB), larger is better",
        {"training": ("train/recon_loss", psnr_of_mse), "held out": ("val/psnr", _same)},
    ),
    Panel(
        "LPIPS, smaller is better",
        {"training, VGG": ("train/perceptual_loss", _same), "held out, Alex": ("val/lpips_alex", _same)},
    ),
    Panel("SSIM, larger is better", {"held out": ("val/ssim", _same)}),
    Panel(
        "discriminator: mean logits",
        {"real": ("train/logits_real", _same), "reconstruction": ("train/logits_fake", _same)},
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
        log_scale=True,
    ),
)
NUM_COLUMNS = 3


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Draw PSNR, LPIPS, SSIM, logits, adversarial losses and gradient norms over the steps into a PNG.

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
    if any(drawn):
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "no data yet", ha="center", va="center", transform=axes.transAxes)


def _draw_series(
    axes: Any, label: str, records: Sequence[Record], name: str, transform: Callable[[float], float], panel: Panel
) -> bool:
    points = [(record["step"], transform(record[name])) for record in records if name in record]
    if panel.log_scale:
        points = [(step, value) for step, value in points if value > 0]
    if not points:
        return False
    marker = "o" if name.startswith("val/") else None
    axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1.2)
    if panel.log_scale:
        axes.set_yscale("log")
    return True
