"""Logged values of runs as plots for the page: labels, panels, and curves of a size that a browser handles."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from telecine.base.yaml_files import read_package_yaml
from telecine.losses.reconstruction import psnr_of_mse
from telecine.report.run import ReportedRun, not_comparable
from telecine.runs.history import History
from telecine.settings import ObjectiveConfig

_Points = list[tuple[int, float]]
_Columns = dict[str, _Points]

_TABLES = read_package_yaml("telecine.report", "plots.yaml")
METRICS: dict[str, str] = _TABLES["metrics"]
# LPIPS of the training clips, under the name of its network; `metrics.jsonl` has it as `_PERCEPTUAL_LOSS`.
_TRAIN_LPIPS = "train/lpips_"
_PERCEPTUAL_LOSS = "train/perceptual_loss"
_TRAIN_PSNR = "train/psnr"  # computed from the mean squared error
_SOURCES = {"train": "training", "val": "held out", "linear": "linear baseline"}
_TRAINING: dict[str, str] = {term.loss_key: term.label for term in ObjectiveConfig().all_terms().values()}
_TRAINING |= _TABLES["training"]
_MAX_POINTS = 600  # of one curve, about the width of a screen; a bucket of values is one point
_HELD_OUT = ("val/", "linear/", "latent/")  # prefixes of values of the held-out clips
# Sums of terms; the page shows them among all losses.
_TOTALS = frozenset({"train/total_loss", "train/total_disc_loss"})


@dataclass(frozen=True)
class Series:
    """One label of a plot, with a curve for each run that logged it."""

    label: str
    key: str  # its name in `metrics.jsonl`
    curves: list[dict[str, Any]]  # see `as_curve`
    is_reference: bool = False  # whether the others are compared with it, as with the linear baseline


@dataclass(frozen=True)
class Plot:
    """A plot: which values it draws, and how; and its curves, once `plots_of` has found some."""

    title: str
    names: Sequence[str] = ()  # the values, as `_columns_of` names them
    scale: str = "linear"
    """The vertical axis. "log" leaves out values that are not positive. "wide" is linear if the values are similar, and
    else logarithmic on both sides of 0."""
    is_smoothed: bool = True  # whether the page may smooth values of training; schedules are drawn as they are
    series: Sequence[Series] = ()
    note: str = ""  # why its curves do not compare; empty if they do
    x: str = "step"  # the horizontal axis
    x_names: Sequence[str] = ()
    """The names of its positions 0, 1, ..., whose values are not joined by lines; empty for numbers."""
    hint: str = ""  # what it shows


_PANELS = [Plot(**fields) for fields in _TABLES["panels"]]
_FIXED_NAMES = {name for panel in _PANELS for name in panel.names}


def plots_of(runs: Sequence[ReportedRun]) -> list[Plot]:
    """Return the plots that have data: one of all losses, the `_panels`, one of all frames' gradients, and one for each
    other name. A curve is left out if every run that has it also has its `_duplicates`.
    """
    columns = [_columns_of(run.records, run.perceptual_net) for run in runs]
    distinct = {name for of_run in columns for name in of_run.keys() - _duplicates(of_run)}
    finite = {name for of_run in columns for name in of_run if any(math.isfinite(y) for _, y in of_run[name])}
    names = sorted(distinct & finite)
    grouped = _panels(names)
    lpips = [name for name in names if name.startswith(_TRAIN_LPIPS)]
    losses = Plot("all losses", [*filter(_is_loss, names), *(lpips if len(lpips) == 1 else [])], scale="wide")
    frames = Plot("gradient of each frame / mean", [name for name in names if History.frame_of(name) is not None])
    in_plots = {name for panel in (losses, *grouped, frames) for name in panel.names}
    singles = [Plot(_label_of(name), [name]) for name in names if name not in in_plots and not _is_lpips(name)]
    notes = not_comparable([run.name for run in runs], [run.summary for run in runs]) if runs else []
    note = f"Held-out values do not compare. {'; '.join(notes)}." if notes else ""
    all_plots = (_plot(panel, columns, set(names), note) for panel in (losses, *grouped, frames, *singles))
    return [plot for plot in all_plots if plot.series]


def as_curve(run: int, points: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """Return the points of the run with this index as a curve of at most `_MAX_POINTS` values, for the page.

    More `values` than that are the means of buckets of neighbours. It then has their minima `low` and maxima `high`,
    and the first and the last value as `ends`. What would be empty is left out.
    """
    points = list(points)
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    curve: dict[str, Any] = {"run": run, "num_left_out": len(points) - len(finite)}
    if len(values) <= _MAX_POINTS:
        return curve | ({"steps": steps, "values": _rounded(values)} if values else {})
    edges = [index * len(values) // _MAX_POINTS for index in range(_MAX_POINTS + 1)]
    buckets = [values[first:last] for first, last in pairwise(edges)]
    return curve | {
        "steps": [steps[(first + last) // 2] for first, last in pairwise(edges)],
        "values": _rounded(sum(bucket) / len(bucket) for bucket in buckets),
        "low": _rounded(map(min, buckets)),
        "high": _rounded(map(max, buckets)),
        "ends": _rounded([values[0], values[-1]]),
    }


def _plot(panel: Plot, columns: Sequence[_Columns], names: set[str], note: str) -> Plot:
    series = []
    for name in panel.names:
        curves = [as_curve(run, of_run[name]) for run, of_run in enumerate(columns) if name in of_run]
        if name in names and curves:
            key = _PERCEPTUAL_LOSS if name.startswith(_TRAIN_LPIPS) else "train/mse" if name == _TRAIN_PSNR else name
            series.append(Series(_label_of(name), key, curves, name.startswith("linear/")))
    compares = any(each.key.startswith(_HELD_OUT) and len(each.curves) > 1 for each in series)
    return replace(panel, series=series, note=note if compares else "")


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]  # float32 has seven significant digits


def _panels(names: Collection[str]) -> list[Plot]:
    """Return the fixed panels, one of LPIPS for each network, one of other losses, and one of scheduled weights."""
    others = sorted(name for name in names if name.startswith("train/") and name not in _FIXED_NAMES)
    losses = [name for name in others if _is_loss(name) and name not in {"train/mse", *_TOTALS}]
    weights = [name for name in others if name.endswith("_weight")]
    metrics = sorted({name.partition("/")[2] for name in names if _is_lpips(name)})
    every = [
        _PANELS[0],
        *(Plot(f"{metric_label(each)}, smaller is better", [f"{s}/{each}" for s in _SOURCES]) for each in metrics),
        *_PANELS[1:-1],
        Plot("other losses, unweighted", losses, scale="wide"),
        Plot("scheduled weights", weights, "wide", is_smoothed=False),
        _PANELS[-1],
    ]
    return [panel for panel in every if not set(panel.names).isdisjoint(names)]


def _is_lpips(name: str) -> bool:
    """Return whether a value is an LPIPS. Those of different networks do not compare, and are never on one axis."""
    return name.startswith((_TRAIN_LPIPS, "val/lpips_", "linear/lpips_"))


def _is_loss(name: str) -> bool:
    prefix, _, rest = name.partition("/")
    is_loss = rest in ("mse", "logvar", "aux_losses") or ("loss" in rest and not rest.endswith("_weight"))
    return prefix == "train" and is_loss


def _columns_of(records: Iterable[Mapping[str, float]], perceptual_net: str | None) -> _Columns:
    """Return the (step, value) pairs of every name in a run's records, and of the PSNR of the training clips."""
    columns: _Columns = {}
    for record in records:
        step = int(record["step"])
        for name, value in record.items():
            if name == _PERCEPTUAL_LOSS and perceptual_net is not None:
                name = f"{_TRAIN_LPIPS}{perceptual_net}"
            if name != "step":
                columns.setdefault(name, []).append((step, float(value)))
    if "train/mse" in columns:
        steps, errors = zip(*columns["train/mse"], strict=True)
        psnr = psnr_of_mse(torch.tensor(errors, dtype=torch.float64))
        columns[_TRAIN_PSNR] = list(zip(steps, psnr.tolist(), strict=True))
    return columns


def _duplicates(columns: _Columns) -> set[str]:
    """Return the names of sums whose only term is logged, too: the term is plotted, and the sum is not."""
    terms = [name for name in columns if name.startswith("train/") and name.endswith("_loss") and name not in _TOTALS]
    candidates = {"recon_loss": ["train/mse"], "total_disc_loss": ["train/discr_loss"], "aux_losses": terms}
    pairs = ((f"train/{name}", term) for name, of_sum in candidates.items() for term in of_sum)
    return {name for name, term in pairs if name in columns and _is_same(columns[name], columns.get(term, []))}


def _is_same(some: _Points, others: _Points) -> bool:
    return len(some) == len(others) and all(
        a == b and math.isclose(x, y, rel_tol=1e-5) for (a, x), (b, y) in zip(some, others, strict=True)
    )


def _label_of(name: str) -> str:
    if (frame := History.frame_of(name)) is not None:
        return f"frame {frame}"
    prefix, _, rest = name.partition("/")
    if prefix in _SOURCES and (rest in METRICS or name.startswith(_TRAIN_LPIPS)):
        return f"{metric_label(rest)}, {_SOURCES[prefix]}"
    known = [key for key in _TRAINING if prefix == "train" and (rest == key or rest.startswith(f"{key}_"))]
    if not known or rest.endswith("_weight"):
        return (rest if prefix == "train" else name.replace("/", " ")).replace("_", " ")
    key = max(known, key=len)  # "gen_loss_discr_3d" is the generator loss of one of several discriminators
    return _TRAINING[key] if rest == key else f"{_TRAINING[key]}, {rest.removeprefix(f'{key}_')}"


def metric_label(metric: str) -> str:
    """Return what a metric is called; one without a label has the name that it was logged under."""
    return METRICS.get(metric) or (f"perceptual distance ({metric[6:]})" if metric.startswith("lpips_") else metric)
