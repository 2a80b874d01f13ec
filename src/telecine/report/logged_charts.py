"""The charts of runs: which values they draw together, and what these are called."""

from collections.abc import Sequence
from dataclasses import dataclass

from telecine.base.logged_values import TRAIN_LPIPS, label_and_kind
from telecine.evaluation.metrics import METRICS
from telecine.report.chart_data import Chart, Series, make_curve
from telecine.report.columns import TRAIN_MSE, Column, columns_of_runs, kind_of
from telecine.report.reported_run import ReportedRun, not_comparable
from telecine.runs.history import History


@dataclass(frozen=True)
class MetricPrefix:
    """What the values with one prefix are measured on, and by which model."""

    label: str
    is_held_out: bool = True
    """Whether they are of the held-out clips, which may be others in another run."""
    is_reference: bool = False
    """Whether they are of a model that the trained one is compared with."""


PREFIXES = {
    "train": MetricPrefix("training", is_held_out=False),
    "val": MetricPrefix("held out"),
    "linear": MetricPrefix("linear baseline", is_reference=True),
    "teacher": MetricPrefix("teacher", is_reference=True),
    "latent": MetricPrefix("latent"),
}
"""The prefixes of logged values, such as `val` of `val/psnr`."""


@dataclass(frozen=True)
class ChartDefinition:
    """Which logged values a chart draws, and how."""

    title: str
    names: Sequence[str]
    """The values, as `columns_of_runs` names them."""
    unit: str = ""
    scale: str = "linear"
    """The vertical axis, see `Chart.scale`."""
    is_smoothed: bool = True
    """Whether values of training are smoothed. Validations have few values, and are not; schedules have no noise."""
    explanation: str = ""


QUALITY_CHARTS = [
    ChartDefinition(
        title="PSNR",
        names=[f"{prefix}/psnr" for prefix in PREFIXES],
        unit="dB",
        explanation="Peak signal-to-noise ratio of reconstructions. Larger is better.",
    ),
    ChartDefinition(
        title="SSIM",
        names=[f"{prefix}/ssim" for prefix in PREFIXES],
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


def charts_of_runs(runs: Sequence[ReportedRun]) -> list[Chart]:
    """Return the charts that have data.

    Each value of `columns_of_runs` is in a chart.
    """
    columns = columns_of_runs(runs)
    problems = []
    if runs:
        problems = not_comparable([run.name for run in runs], [run.summary for run in runs])
    note = ""
    if problems:
        note = f"Held-out values do not compare. {'; '.join(problems)}."

    charts = []
    for definition in chart_definitions(list(columns)):
        series = []
        for name in definition.names:
            if name in columns:
                series.append(_series(name, columns[name], definition))
        if not series:
            continue
        is_compared = any(_is_held_out(one.key) and len(one.curves) > 1 for one in series)
        title = definition.title
        if definition.unit:
            title = f"{title} ({definition.unit})"
        chart = Chart(
            title=title,
            series=series,
            scale=definition.scale,
            explanation=definition.explanation,
            note=note if is_compared else "",
        )
        charts.append(chart)
    return charts


def chart_definitions(names: Sequence[str]) -> list[ChartDefinition]:
    """Return the charts of values: all losses, the fixed charts, and one for each name that is in no other."""
    losses = [name for name in names if kind_of(name) in ("loss", "sum of losses")]
    train_lpips = [name for name in names if name.startswith(TRAIN_LPIPS)]
    if len(train_lpips) == 1:  # those of different networks do not compare
        losses.append(train_lpips[0])
    all_losses = ChartDefinition("all losses", losses, scale="wide")

    lpips_charts = []
    for metric in sorted({name.partition("/")[2] for name in names if _is_lpips(name)}):
        definition = ChartDefinition(
            title=metric_label(metric),
            names=[f"{prefix}/{metric}" for prefix in PREFIXES],
            explanation="Perceptual distance of reconstructions. Smaller is better.",
        )
        lpips_charts.append(definition)

    fixed_charts = [*QUALITY_CHARTS, *lpips_charts, *TRAINING_CHARTS]
    in_fixed_charts = {name for definition in fixed_charts for name in definition.names}
    other_losses = []
    weights = []
    for name in names:
        if name in in_fixed_charts or name == TRAIN_MSE:
            continue
        if kind_of(name) == "weight":
            weights.append(name)
        elif kind_of(name) == "loss":
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
    """Return what a value is called in charts and tables."""
    frame = History.frame_of(name)
    if frame is not None:
        return f"frame {frame}"

    prefix, _, metric = name.partition("/")
    has_label = metric in METRICS and METRICS[metric].label != ""
    if prefix in PREFIXES and (has_label or name.startswith(TRAIN_LPIPS)):
        return f"{metric_label(metric)}, {PREFIXES[prefix].label}"
    if prefix != "train":
        return name.replace("/", " ").replace("_", " ")

    label, _ = label_and_kind(metric)
    return label


def metric_label(metric: str) -> str:
    """Return what a metric is called. One without a label has the name that it was logged under."""
    if metric in METRICS and METRICS[metric].label:
        return METRICS[metric].label
    if metric.startswith("lpips_"):
        return f"perceptual distance ({metric.removeprefix('lpips_')})"
    return metric


def _series(name: str, columns: Sequence[Column], definition: ChartDefinition) -> Series:
    curves = [make_curve(column.run, column.points) for column in columns]
    prefix = name.partition("/")[0]
    is_reference = prefix in PREFIXES and PREFIXES[prefix].is_reference
    return Series(
        label=label_of(name),
        key=columns[-1].logged_name,
        curves=curves,
        is_reference=is_reference,
        is_smoothed=definition.is_smoothed and prefix == "train",
    )


def _is_held_out(key: str) -> bool:
    prefix = key.partition("/")[0]
    return prefix in PREFIXES and PREFIXES[prefix].is_held_out


def _is_lpips(name: str) -> bool:
    """Return whether a value is an LPIPS. Those of different networks do not compare, and are never on one axis."""
    prefix, _, metric = name.partition("/")
    return prefix in PREFIXES and metric.startswith("lpips_")
