"""The charts of runs: which logged values they draw together, and what these are called."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from telecine.losses.reconstruction import psnr_of_mse
from telecine.report.chart_data import Chart, Curve, Series, make_curve
from telecine.report.reported_run import ReportedRun, not_comparable
from telecine.runs.history import History


@dataclass(frozen=True)
class _Column:
    """A value of a run at each step."""

    logged_name: str
    """Its name in `metrics.jsonl`. Charts draw the perceptual loss as `train/lpips_*`, and a PSNR of `train/mse`."""
    points: list[tuple[int, float]]
    """Steps and values."""


_Columns = dict[str, _Column]  # by name in charts

# LPIPS of the training clips, under the name of its network.
_TRAIN_LPIPS = "train/lpips_"
_TRAIN_MSE = "train/mse"
_HELD_OUT = ("val/", "linear/", "teacher/", "latent/")  # prefixes of values of the held-out clips


@dataclass(frozen=True)
class ChartDefinition:
    """Which logged values a chart draws, and how."""

    title: str
    names: Sequence[str]
    """The values, as `metrics.jsonl` names them; also `train/psnr`, and `train/lpips_*` for the perceptual loss."""
    unit: str = ""
    scale: str = "linear"
    """The vertical axis, see `Chart.scale`."""
    is_smoothed: bool = True
    explanation: str = ""


QUALITY_CHARTS = [
    ChartDefinition(
        title="PSNR",
        names=["train/psnr", "val/psnr", "linear/psnr", "teacher/psnr"],
        unit="dB",
        explanation="Peak signal-to-noise ratio of reconstructions. Larger is better.",
    ),
    ChartDefinition(
        title="SSIM",
        names=["val/ssim", "linear/ssim", "teacher/ssim"],
        explanation="Structural similarity of reconstructions. Larger is better.",
    ),
]
"""Charts of how good reconstructions are. One of LPIPS for each network follows."""

TRAINING_CHARTS = [
    ChartDefinition(
        title="discriminator: logits",
        names=[
            "train/logits_real",
            "train/logits_fake",
            "train/logits_real_std",
            "train/logits_fake_std",
        ],
        explanation="Logits of inputs and of reconstructions. A gap that grows says that the discriminator wins.",
    ),
    ChartDefinition(
        title="discriminator: fractions",
        names=["train/accuracy_real", "train/accuracy_fake", "train/hinge_active"],
        explanation="Fractions of logits: classified correctly, and within the margin of the hinge loss.",
    ),
    ChartDefinition(
        title="adversarial losses",
        names=["train/gen_loss", "train/discr_loss", "train/grad_penalty_loss"],
    ),
    ChartDefinition(
        title="adaptive weight and gradient norms",
        names=["train/adaptive_weight", "train/grad_norm", "train/disc_grad_norm"],
        scale="log",
    ),
    ChartDefinition(
        title="update norm / weight norm",
        names=["train/update_ratio", "train/disc_update_ratio"],
        scale="log",
    ),
    ChartDefinition(
        title="fractions: adversarial gradient, clipped updates",
        names=[
            "train/adversarial_gradient_share",
            "train/grad_clipped",
            "train/disc_grad_clipped",
            "train/grad_overflow",
            "train/disc_grad_overflow",
        ],
    ),
    ChartDefinition(
        title="learning rate",
        names=["train/lr"],
        is_smoothed=False,
    ),
]
"""Charts of the training itself. Other losses, scheduled weights and gradients of frames follow."""

METRIC_LABELS = {
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
    "teacher": "teacher",
}

Kind = Literal["loss", "sum of losses", "weight", "other"]


@dataclass(frozen=True)
class LoggedValue:
    """A value of training, which `metrics.jsonl` has as `train/` and its name.

    With several discriminators, the name and `_` also begin the names of the values of each of them.
    """

    name: str
    label: str
    kind: Kind = "other"


_LOGGED_VALUES = [
    LoggedValue("perceptual_loss", "perceptual loss", "loss"),
    LoggedValue("gen_loss", "generator loss", "loss"),
    LoggedValue("feature_matching_loss", "feature matching loss", "loss"),
    LoggedValue("aux_losses", "auxiliary losses", "loss"),
    LoggedValue("grad_penalty_loss", "gradient penalty", "loss"),
    LoggedValue("lecam_loss", "LeCam regularisation", "loss"),
    LoggedValue("total_loss", "total loss", "sum of losses"),
    LoggedValue("total_disc_loss", "total discriminator loss", "sum of losses"),
    LoggedValue("mse", "mean squared error", "loss"),
    LoggedValue("recon_loss", "reconstruction loss", "loss"),
    LoggedValue("discr_loss", "discriminator loss", "loss"),
    LoggedValue("kl_loss", "KL loss", "loss"),
    LoggedValue("nll_loss", "negative log-likelihood", "loss"),
    LoggedValue("logvar", "log variance", "loss"),
    LoggedValue("logits_real", "mean logit, real"),
    LoggedValue("logits_fake", "mean logit, reconstruction"),
    LoggedValue("logits_real_std", "spread of logits, real"),
    LoggedValue("logits_fake_std", "spread of logits, reconstruction"),
    LoggedValue("accuracy_real", "accuracy, real"),
    LoggedValue("accuracy_fake", "accuracy, reconstruction"),
    LoggedValue("hinge_active", "logits within the margin"),
    LoggedValue("adaptive_weight", "adaptive weight"),
    LoggedValue("grad_norm", "gradient norm"),
    LoggedValue("disc_grad_norm", "gradient norm, discriminators"),
    LoggedValue("update_ratio", "update ratio"),
    LoggedValue("disc_update_ratio", "update ratio, discriminators"),
    LoggedValue("adversarial_gradient_share", "gradient of the adversarial terms"),
    LoggedValue("grad_clipped", "clipped updates"),
    LoggedValue("disc_grad_clipped", "clipped updates, discriminators"),
    LoggedValue("grad_overflow", "skipped updates"),
    LoggedValue("disc_grad_overflow", "skipped updates, discriminators"),
    LoggedValue("lr", "learning rate"),
    LoggedValue("clips_per_second", "clips a second"),
    LoggedValue("ema_psnr_behind", "PSNR of the raw weights above the averaged ones"),
]
_VALUES_BY_NAME = {value.name: value for value in _LOGGED_VALUES}


def logged_value(name: str) -> LoggedValue:
    """Return a value of training by its name without `train/`, also one of a single discriminator.

    Weights, and terms and auxiliary losses of users, have other names: those that end in `_weight` are weights, and
    those with "loss" are losses.
    """
    if name in _VALUES_BY_NAME:
        return _VALUES_BY_NAME[name]
    if name.endswith("_weight"):
        return LoggedValue(name, name.replace("_", " "), "weight")
    of_all = [value for value in _LOGGED_VALUES if name.startswith(f"{value.name}_")]
    if of_all:
        value = max(of_all, key=lambda value: len(value.name))
        discriminator = name.removeprefix(f"{value.name}_")
        return LoggedValue(name, f"{value.label}, {discriminator}", value.kind)
    return LoggedValue(name, name.replace("_", " "), "loss" if "loss" in name else "other")


def charts_of_runs(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Return the charts that have data.

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
    for definition in chart_definitions(finite_names):
        series = [_series(name, columns) for name in definition.names if name in finite_names]
        if not series:
            continue
        is_compared = any(one.key.startswith(_HELD_OUT) and len(one.curves) > 1 for one in series)
        title = definition.title
        if definition.unit:
            title = f"{title} ({definition.unit})"
        chart = Chart(
            title=title,
            series=series,
            scale=definition.scale,
            explanation=definition.explanation,
            note=note if is_compared else "",
            is_smoothed=definition.is_smoothed,
        )
        charts.append(chart)
    return charts


def chart_definitions(names: Sequence[str]) -> list[ChartDefinition]:
    """Return the charts of logged values: all losses, the fixed charts, and one for each name that is in no other."""
    losses = [name for name in names if _kind_of(name) in ("loss", "sum of losses")]
    train_lpips = [name for name in names if name.startswith(_TRAIN_LPIPS)]
    if len(train_lpips) == 1:  # those of different networks do not compare
        losses.append(train_lpips[0])
    all_losses = ChartDefinition("all losses", losses, scale="wide")

    lpips_charts = []
    for metric in sorted({name.partition("/")[2] for name in names if _is_lpips(name)}):
        definition = ChartDefinition(
            title=metric_label(metric),
            names=[f"{source}/{metric}" for source in _SOURCES],
            explanation="Perceptual distance of reconstructions. Smaller is better.",
        )
        lpips_charts.append(definition)

    fixed_charts = [*QUALITY_CHARTS, *lpips_charts, *TRAINING_CHARTS]
    in_fixed_charts = {name for definition in fixed_charts for name in definition.names}
    other_losses = []
    weights = []
    for name in names:
        if name in in_fixed_charts or name == _TRAIN_MSE:
            continue
        if _kind_of(name) == "weight":
            weights.append(name)
        elif _kind_of(name) == "loss":
            other_losses.append(name)
    frames = [name for name in names if History.frame_of(name) is not None]
    definitions = [
        all_losses,
        *fixed_charts,
        ChartDefinition("other losses, unweighted", other_losses, scale="wide"),
        ChartDefinition("scheduled weights", weights, scale="wide", is_smoothed=False),
        ChartDefinition("gradient of each frame / mean", frames),
    ]
    in_charts = {name for definition in definitions for name in definition.names}
    for name in names:
        if name not in in_charts:
            definitions.append(ChartDefinition(label_of(name), [name]))
    return definitions


def label_of(name: str) -> str:
    """Return what a logged value is called in charts and tables."""
    frame = History.frame_of(name)
    if frame is not None:
        return f"frame {frame}"

    source, _, metric = name.partition("/")
    if source in _SOURCES and (metric in METRIC_LABELS or name.startswith(_TRAIN_LPIPS)):
        return f"{metric_label(metric)}, {_SOURCES[source]}"
    if source != "train":
        return name.replace("/", " ").replace("_", " ")

    return logged_value(metric).label


def metric_label(metric: str) -> str:
    """Return what a metric is called. One without a label has the name that it was logged under."""
    if metric in METRIC_LABELS:
        return METRIC_LABELS[metric]
    if metric.startswith("lpips_"):
        return f"perceptual distance ({metric.removeprefix('lpips_')})"
    return metric


def _series(name: str, columns: Sequence[_Columns]) -> Series:
    curves: list[Curve] = []
    logged_name = name
    for run, run_columns in enumerate(columns):
        if name in run_columns:
            logged_name = run_columns[name].logged_name
            curves.append(make_curve(run, run_columns[name].points))
    is_reference = name.startswith(("linear/", "teacher/"))
    return Series(label_of(name), logged_name, curves, is_reference=is_reference)


def _is_lpips(name: str) -> bool:
    """Return whether a value is an LPIPS. Those of different networks do not compare, and are never on one axis."""
    return name.startswith((_TRAIN_LPIPS, "val/lpips_", "linear/lpips_", "teacher/lpips_"))


def _kind_of(name: str) -> Kind:
    """Return the kind of a logged value; "other" for those that are not of training."""
    source, _, key = name.partition("/")
    return logged_value(key).kind if source == "train" else "other"


def _is_finite(name: str, columns: Sequence[_Columns]) -> bool:
    for run_columns in columns:
        points = run_columns[name].points if name in run_columns else []
        if any(math.isfinite(value) for _, value in points):
            return True
    return False


def _columns_of(records: Iterable[Mapping[str, float]], perceptual_net: str | None) -> _Columns:
    """Return the values in a run's records by their names in charts, and the PSNR of the training clips."""
    columns: _Columns = {}
    for record in records:
        step = int(record["step"])
        for logged_name, value in record.items():
            if logged_name == "step":
                continue
            name = logged_name
            if name == "train/perceptual_loss" and perceptual_net is not None:
                name = f"{_TRAIN_LPIPS}{perceptual_net}"
            if name not in columns:
                columns[name] = _Column(logged_name, [])
            columns[name].points.append((step, float(value)))
    if _TRAIN_MSE in columns:
        points = columns[_TRAIN_MSE].points
        errors = torch.tensor([error for _, error in points], dtype=torch.float64)
        steps = [step for step, _ in points]
        psnr_points = list(zip(steps, psnr_of_mse(errors).tolist(), strict=True))
        columns["train/psnr"] = _Column(_TRAIN_MSE, psnr_points)
    return columns


def _sums_of_one_term(columns: _Columns) -> set[str]:
    """Return the names of sums that equal their only term, which is logged, too."""
    losses = [name for name in columns if _kind_of(name) == "loss" and name != "train/aux_losses"]
    terms_of_sums = {
        "train/recon_loss": [_TRAIN_MSE],
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


def _is_same(column: _Column, other: _Column) -> bool:
    if len(column.points) != len(other.points):
        return False
    for (step, value), (other_step, other_value) in zip(column.points, other.points, strict=True):
        if step != other_step or not math.isclose(value, other_value, rel_tol=1e-5):
            return False
    return True
