"""Which logged values of runs the page draws together, and what they are called."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from telecine.losses.reconstruction import psnr_of_mse
from telecine.report.chart_data import Chart, Curve, Series, make_curve
from telecine.report.reported_run import ReportedRun, not_comparable
from telecine.runs.history import History
from telecine.settings import ObjectiveConfig

_Points = list[tuple[int, float]]
_Columns = dict[str, _Points]

# LPIPS of the training clips, under the name of its network. `metrics.jsonl` has it as `_PERCEPTUAL_LOSS`.
_TRAIN_LPIPS = "train/lpips_"
_PERCEPTUAL_LOSS = "train/perceptual_loss"
_TRAIN_PSNR = "train/psnr"  # computed from the mean squared error
_HELD_OUT = ("val/", "linear/", "latent/")  # prefixes of values of the held-out clips
# Sums of terms; the page shows them among all losses.
_TOTALS = ("train/total_loss", "train/total_disc_loss")


@dataclass(frozen=True)
class Plot:
    """A plot of several logged values."""

    title: str
    names: Sequence[str]
    """The values, as `metrics.jsonl` names them; also `train/psnr`, and `train/lpips_*` for the perceptual loss."""
    unit: str = ""
    scale: str = "linear"
    """The vertical axis, see `Chart.scale`."""
    is_smoothed: bool = True
    explanation: str = ""


PLOTS_OF_QUALITY = [
    Plot(
        title="PSNR",
        names=["train/psnr", "val/psnr", "linear/psnr"],
        unit="dB",
        explanation="Peak signal-to-noise ratio of reconstructions. Larger is better.",
    ),
    Plot(
        title="SSIM",
        names=["val/ssim", "linear/ssim"],
        explanation="Structural similarity of reconstructions. Larger is better.",
    ),
]
"""Plots of how good reconstructions are. One of LPIPS for each network follows."""

PLOTS_OF_TRAINING = [
    Plot(
        title="discriminator: logits",
        names=[
            "train/logits_real",
            "train/logits_fake",
            "train/logits_real_std",
            "train/logits_fake_std",
        ],
        explanation="Logits of inputs and of reconstructions. A gap that grows says that the discriminator wins.",
    ),
    Plot(
        title="discriminator: fractions",
        names=["train/accuracy_real", "train/accuracy_fake", "train/hinge_active"],
        explanation="Fractions of logits: classified correctly, and within the margin of the hinge loss.",
    ),
    Plot(
        title="adversarial losses",
        names=["train/gen_loss", "train/discr_loss", "train/grad_penalty_loss"],
    ),
    Plot(
        title="adaptive weight and gradient norms",
        names=["train/adaptive_weight", "train/grad_norm", "train/disc_grad_norm"],
        scale="log",
    ),
    Plot(
        title="update norm / weight norm",
        names=["train/update_ratio", "train/disc_update_ratio"],
        scale="log",
    ),
    Plot(
        title="fractions: adversarial gradient, clipped updates",
        names=[
            "train/adversarial_gradient_share",
            "train/grad_clipped",
            "train/disc_grad_clipped",
            "train/grad_overflow",
            "train/disc_grad_overflow",
        ],
    ),
    Plot(
        title="learning rate",
        names=["train/lr"],
        is_smoothed=False,
    ),
]
"""Plots of the training itself. Other losses, scheduled weights and gradients of frames follow."""

METRICS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips_alex": "LPIPS (Alex)",
    "lpips_vgg": "LPIPS (VGG)",
}
"""What metrics are called."""

_SOURCES = {
    "train": "training",
    "val": "held out",
    "linear": "linear baseline",
}

_TRAINING_LABELS = {
    term.loss_key: term.label for term in ObjectiveConfig().term_schedules().values()
}
_TRAINING_LABELS |= {
    "mse": "mean squared error",
    "recon_loss": "reconstruction loss",
    "discr_loss": "discriminator loss",
    "kl_loss": "KL loss",
    "nll_loss": "negative log-likelihood",
    "total_disc_loss": "total discriminator loss",
    "logvar": "log variance",
    "logits_real": "mean logit, real",
    "logits_fake": "mean logit, reconstruction",
    "logits_real_std": "spread of logits, real",
    "logits_fake_std": "spread of logits, reconstruction",
    "accuracy_real": "accuracy, real",
    "accuracy_fake": "accuracy, reconstruction",
    "hinge_active": "logits within the margin",
    "grad_norm": "gradient norm",
    "disc_grad_norm": "gradient norm, discriminators",
    "update_ratio": "update ratio",
    "disc_update_ratio": "update ratio, discriminators",
    "adversarial_gradient_share": "gradient of the adversarial terms",
    "grad_clipped": "clipped updates",
    "disc_grad_clipped": "clipped updates, discriminators",
    "grad_overflow": "skipped updates",
    "disc_grad_overflow": "skipped updates, discriminators",
    "lr": "learning rate",
    "clips_per_second": "clips a second",
    "ema_psnr_behind": "PSNR of the raw weights above the averaged ones",
}


def charts_of_runs(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Return a chart for each plot that has data.

    Each finite logged value is in a chart. A sum is left out if it equals its only term in every run.
    """
    columns = [_columns_of(run.records, run.perceptual_net) for run in runs]
    names: set[str] = set()
    for run_columns in columns:
        sums = _sums_of_one_term(run_columns)
        names.update(run_columns.keys() - sums)
    finite_names = [name for name in sorted(names) if _is_finite(name, columns)]

    problems = []
    if runs:
        problems = not_comparable([run.name for run in runs], [run.summary for run in runs])
    note = ""
    if problems:
        note = f"Held-out values do not compare. {'; '.join(problems)}."

    charts = []
    for plot in plots_of_names(finite_names):
        series = [_series(name, columns) for name in plot.names if name in finite_names]
        if not series:
            continue
        is_compared = any(one.key.startswith(_HELD_OUT) and len(one.curves) > 1 for one in series)
        chart = Chart(
            title=f"{plot.title} ({plot.unit})" if plot.unit else plot.title,
            series=series,
            scale=plot.scale,
            explanation=plot.explanation,
            note=note if is_compared else "",
            is_smoothed=plot.is_smoothed,
        )
        charts.append(chart)
    return charts


def plots_of_names(names: Sequence[str]) -> list[Plot]:
    """Return the plots of logged values: all losses, the fixed plots, and one for each name that is in no other."""
    losses = [name for name in names if _is_loss(name)]
    train_lpips = [name for name in names if name.startswith(_TRAIN_LPIPS)]
    if len(train_lpips) == 1:  # those of different networks do not compare
        losses.append(train_lpips[0])
    all_losses = Plot("all losses", losses, scale="wide")

    lpips_plots = []
    for metric in sorted({name.partition("/")[2] for name in names if _is_lpips(name)}):
        plot = Plot(
            title=metric_label(metric),
            names=[f"{source}/{metric}" for source in _SOURCES],
            explanation="Perceptual distance of reconstructions. Smaller is better.",
        )
        lpips_plots.append(plot)

    fixed_plots = [*PLOTS_OF_QUALITY, *lpips_plots, *PLOTS_OF_TRAINING]
    in_fixed_plots = {name for plot in fixed_plots for name in plot.names}
    other_losses = []
    weights = []
    for name in names:
        if name in in_fixed_plots or not name.startswith("train/"):
            continue
        if name.endswith("_weight"):
            weights.append(name)
        elif _is_loss(name) and name != "train/mse" and name not in _TOTALS:
            other_losses.append(name)
    frames = [name for name in names if History.frame_of(name) is not None]
    plots = [
        all_losses,
        *fixed_plots,
        Plot("other losses, unweighted", other_losses, scale="wide"),
        Plot("scheduled weights", weights, scale="wide", is_smoothed=False),
        Plot("gradient of each frame / mean", frames),
    ]
    in_plots = {name for plot in plots for name in plot.names}
    for name in names:
        if name not in in_plots:
            plots.append(Plot(label_of(name), [name]))
    return plots


def label_of(name: str) -> str:
    """Return what a logged value is called in charts and tables."""
    frame = History.frame_of(name)
    if frame is not None:
        return f"frame {frame}"

    source, _, metric = name.partition("/")
    if source in _SOURCES and (metric in METRICS or name.startswith(_TRAIN_LPIPS)):
        return f"{metric_label(metric)}, {_SOURCES[source]}"
    if source != "train":
        return name.replace("/", " ").replace("_", " ")

    keys = [key for key in _TRAINING_LABELS if metric == key or metric.startswith(f"{key}_")]
    if not keys or metric.endswith("_weight"):
        return metric.replace("_", " ")
    key = max(
        keys, key=len
    )  # "gen_loss_discr_3d" is the generator loss of one of several discriminators
    if metric == key:
        return _TRAINING_LABELS[key]
    return f"{_TRAINING_LABELS[key]}, {metric.removeprefix(f'{key}_')}"


def metric_label(metric: str) -> str:
    """Return what a metric is called. One without a label has the name that it was logged under."""
    if metric in METRICS:
        return METRICS[metric]
    if metric.startswith("lpips_"):
        return f"perceptual distance ({metric.removeprefix('lpips_')})"
    return metric


def _series(name: str, columns: Sequence[_Columns]) -> Series:
    curves: list[Curve] = []
    for run, run_columns in enumerate(columns):
        if name in run_columns:
            curves.append(make_curve(run, run_columns[name]))
    key = name
    if name == _TRAIN_PSNR:
        key = "train/mse"
    elif name.startswith(_TRAIN_LPIPS):
        key = _PERCEPTUAL_LOSS
    return Series(label_of(name), key, curves, is_reference=name.startswith("linear/"))


def _is_lpips(name: str) -> bool:
    """Return whether a value is an LPIPS. Those of different networks do not compare, and are never on one axis."""
    return name.startswith((_TRAIN_LPIPS, "val/lpips_", "linear/lpips_"))


def _is_loss(name: str) -> bool:
    source, _, key = name.partition("/")
    if source != "train" or key.endswith("_weight"):
        return False
    return key in ("mse", "logvar", "aux_losses") or "loss" in key


def _is_finite(name: str, columns: Sequence[_Columns]) -> bool:
    for run_columns in columns:
        for _, value in run_columns.get(name, []):
            if math.isfinite(value):
                return True
    return False


def _columns_of(records: Iterable[Mapping[str, float]], perceptual_net: str | None) -> _Columns:
    """Return the (step, value) pairs of each name in a run's records, and of the PSNR of the training clips."""
    columns: _Columns = {}
    for record in records:
        step = int(record["step"])
        for logged_name, value in record.items():
            if logged_name == "step":
                continue
            name = logged_name
            if name == _PERCEPTUAL_LOSS and perceptual_net is not None:
                name = f"{_TRAIN_LPIPS}{perceptual_net}"
            columns.setdefault(name, []).append((step, float(value)))
    if "train/mse" in columns:
        errors = torch.tensor([error for _, error in columns["train/mse"]], dtype=torch.float64)
        steps = [step for step, _ in columns["train/mse"]]
        columns[_TRAIN_PSNR] = list(zip(steps, psnr_of_mse(errors).tolist(), strict=True))
    return columns


def _sums_of_one_term(columns: _Columns) -> set[str]:
    """Return the names of sums that equal their only term, which is logged, too."""
    losses = [
        name
        for name in columns
        if name.startswith("train/") and name.endswith("_loss") and name not in _TOTALS
    ]
    terms_of_sums = {
        "train/recon_loss": ["train/mse"],
        "train/total_disc_loss": ["train/discr_loss"],
        "train/aux_losses": losses,
    }
    sums = set()
    for name, terms in terms_of_sums.items():
        if name not in columns:
            continue
        for term in terms:
            if term in columns and _is_same(columns[name], columns[term]):
                sums.add(name)
    return sums


def _is_same(points: _Points, others: _Points) -> bool:
    if len(points) != len(others):
        return False
    for (step, value), (other_step, other_value) in zip(points, others, strict=True):
        if step != other_step or not math.isclose(value, other_value, rel_tol=1e-5):
            return False
    return True
