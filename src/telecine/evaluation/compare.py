"""Comparison of two evaluations of the same clips: differences in each metric with bootstrap intervals, and plots."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from telecine.base.checks import argument_error, shorten
from telecine.base.files import atomic_write, read_json, write_json
from telecine.evaluation.evaluate import COLOURS, FRAMES_FILE, Evaluation, plot_frames
from telecine.evaluation.protocol import DEFINITIONS

_Table: TypeAlias = Mapping[str, object]
# Fields of the protocol that must be equal, or the figures do not compare.
_CLIP_SIZE = ("num_clips", "num_frames", "height", "width", "frame_stride")
_MUST_MATCH = (*_CLIP_SIZE, "resize", "crop", "value_range", "reconstruction", "clips_sha256")
# Fields whose difference is a warning, as are other versions: the clips may still have been measured in the same way.
_SHOULD_MATCH = ("data", "fps")

_CONFIDENCE = 0.95
_NUM_RESAMPLES = 10_000
_SEED = 0
_RESAMPLES_PER_BATCH = 100  # bounds memory


@dataclass(frozen=True)
class _Difference:
    """The figures of two evaluations, A and B, in one metric, and their difference."""

    name: str  # the metric, or its distance from the best value for metrics that are best near a number
    first: float
    second: float
    mean: float  # over clips, of B - A
    interval: tuple[float, float] | None  # the 95 % bootstrap interval of the mean; None for figures of the whole set
    larger_is_better: bool

    @property
    def better(self) -> Literal["A", "B", "undecided"]:
        """Which evaluation is better; "undecided" if the interval contains 0 or NaN, or does not exist."""
        if self.interval is None or not (self.interval[0] > 0 or self.interval[1] < 0):
            return "undecided"
        return "B" if (self.interval[0] > 0) == self.larger_is_better else "A"

    def text(self) -> str:
        interval = "" if self.interval is None else f" [{self.interval[0]:+.4g}, {self.interval[1]:+.4g}]"
        return f"{self.mean:+.4g}{interval}"


@dataclass(frozen=True)
class _Comparison:
    differences: list[_Difference]
    warnings: list[str]  # differences of the protocols that leave the figures comparable
    num_clips: int

    def print_to(self, console: Console) -> None:
        title = f"{self.num_clips} clips, {_CONFIDENCE:.0%} intervals"
        table = Table("metric", "A", "B", "B - A", "better", title=title)
        for each in self.differences:
            table.add_row(each.name, f"{each.first:.4f}", f"{each.second:.4f}", each.text(), each.better)
        console.print(table)
        for warning in self.warnings:
            console.print(f"differs: {warning}", soft_wrap=True)


def compare(first: str | Path, second: str | Path, *, output: str | Path | None = None) -> _Comparison:
    """Compare two evaluations clip by clip: B - A, of their output folders, with 95 % bootstrap intervals over clips.

    `output` is a folder for comparison.json, comparison.png, and comparison_frames.png (by frame position in a clip).

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: The two did not measure the same clips in the same way. The message names what differs.
    """
    folders = (Path(first), Path(second))
    protocols, figures, clips = zip(*map(Evaluation.read, folders), strict=True)
    warnings = check_protocols(*protocols)
    names = [name for name in protocols[0]["metrics"] if name in protocols[1]["metrics"]]
    paired = [name for name in names if name in clips[0][0]]
    differences = _paired_differences(*clips, names=paired)
    for name in names:
        if name not in paired:  # a Frechet distance is one figure per set, without an interval over clips
            a, b = (each[name] for each in figures)
            differences.append(_Difference(name, a, b, b - a, None, larger_is_better=False))
    comparison = _Comparison(differences, warnings, len(clips[0]))
    if output is not None:
        _write(comparison, folders, Path(output))
    return comparison


def check_protocols(first: _Table, second: _Table) -> list[str]:
    """Return the harmless differences of two protocols; raise a `ValueError` if their figures do not compare."""
    metrics = [_table(protocol, "metrics") for protocol in (first, second)]
    shared = [name for name in metrics[0] if name in metrics[1]]
    a, b = (_table({"published": {}, **protocol}, "published") for protocol in (first, second))
    before, after = (_table({"versions": {}, **protocol}, "versions") for protocol in (first, second))
    differing = _differing(a, b, {**a, **b} if a.get("name") == b.get("name") else ["name"], "published.")
    differing += _differing(first, second, _MUST_MATCH)
    for field in ("metrics", "backbones"):
        differing += _differing(_table(first, field), _table(second, field), shared, f"{field}.")
    if differing:
        remedy = "Evaluate both on the same clips with the same settings."
        raise argument_error("compare", "two evaluations with the same protocol", "; ".join(differing), remedy)
    if not shared:
        raise argument_error("compare", "two evaluations that share a metric", "none", "Evaluate both again.")
    warnings = _differing(first, second, _SHOULD_MATCH)
    warnings += _differing(before, after, sorted(before.keys() | after.keys()), "versions.")
    if unshared := sorted(metrics[0].keys() ^ metrics[1].keys()):
        warnings.append(f"only one has {', '.join(unshared)}")
    return warnings


def _table(protocol: _Table, field: str) -> _Table:
    if not isinstance(table := protocol.get(field), dict):
        raise argument_error("compare", f"evaluations with `{field}` in their protocol", repr(table), "Evaluate again.")
    return table


def _differing(a: _Table, b: _Table, names: Iterable[str], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{name}: {shorten(str(a.get(name)))} and {shorten(str(b.get(name)))}"
        for name in names
        if a.get(name) != b.get(name)
    ]


def _paired_differences(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]], *, names: Sequence[str]
) -> list[_Difference]:
    better = {name: DEFINITIONS[name].better for name in names}
    best = {"nearest to 0": 0.0, "nearest to 1": 1.0}  # such metrics are compared by their distance from it

    def value(clip: Mapping[str, float], name: str) -> float:
        return abs(clip[name] - best[better[name]]) if better[name] in best else clip[name]

    rows = ([[value(clip, name) for name in names] for clip in clips] for clips in (first, second))
    a, b = (torch.tensor(values, dtype=torch.float64) for values in rows)
    figures = torch.stack([a.mean(0), b.mean(0), (b - a).mean(0), *_bootstrap_interval(b - a)], dim=1).tolist()
    differences = []
    for name, (mean_a, mean_b, mean, low, high) in zip(names, figures, strict=True):
        label = {"nearest to 0": f"|{name}|", "nearest to 1": f"|{name} - 1|"}.get(better[name], name)
        interval = (low, high) if len(a) > 1 else None
        differences.append(_Difference(label, mean_a, mean_b, mean, interval, better[name] == "larger"))
    return differences


def _bootstrap_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 95 % confidence interval of each column's mean over rows `(N, M)`, as two tensors `(M,)`.

    Percentile bootstrap (Efron 1979, doi 10.1214/aos/1176344552) with a fixed seed; all columns use the same resamples.
    """
    generator = torch.Generator().manual_seed(_SEED)
    shape = (_RESAMPLES_PER_BATCH, len(values))
    means = [
        values[torch.randint(len(values), shape, generator=generator)].mean(1)
        for _ in range(_NUM_RESAMPLES // _RESAMPLES_PER_BATCH)
    ]
    tail = (1 - _CONFIDENCE) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype), dim=0)
    return low, high


def _write(comparison: _Comparison, folders: Sequence[Path], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    values = {
        "A": str(folders[0]),
        "B": str(folders[1]),
        "num_clips": comparison.num_clips,
        "confidence": _CONFIDENCE,
        "num_resamples": _NUM_RESAMPLES,
        "seed": _SEED,
        "warnings": comparison.warnings,
        "metrics": {each.name: asdict(each) | {"verdict": each.better} for each in comparison.differences},
    }
    write_json(output / "comparison.json", values)
    title = f"B - A over {comparison.num_clips} clips, {_CONFIDENCE:.0%} intervals; B is better to the right of 0"
    _plot_differences(comparison.differences, title, output / "comparison.png")
    curves = {label: read_json(folder / FRAMES_FILE) for label, folder in zip("AB", folders, strict=True)}
    plot_frames(curves, output / "comparison_frames.png")


def _plot_differences(differences: Sequence[_Difference], title: str, path: Path) -> None:
    from matplotlib.figure import Figure  # takes a second to import, which `telecine --help` must not spend

    figure = Figure(figsize=(8, 1 + 0.62 * len(differences)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for difference, axes in zip(differences, figure.subplots(len(differences), 1, squeeze=False).flat, strict=True):
        low, high = difference.interval or (difference.mean, difference.mean)
        colour = COLOURS[difference.better]
        axes.axvline(0, color="black", linewidth=0.8)
        axes.plot([low, high], [0, 0], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([difference.mean], [0], marker="o", markersize=6, color=colour)
        limit = 1.25 * max(abs(low), abs(high))
        limit = limit if 0 < limit < math.inf else 1.0  # 0 if the figures are equal; NaN is shown as text
        axes.set_xlim((-limit, limit) if difference.larger_is_better else (limit, -limit))
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.set_ylabel(difference.name, rotation=0, ha="right", va="center", fontsize=9)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.text(1.01, 0.5, difference.text(), transform=axes.transAxes, fontsize=8, va="center", color=colour)
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))
