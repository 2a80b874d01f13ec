"""Comparison of two evaluations of the same clips: differences in each metric with bootstrap intervals, and plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from telecine.base.checks import count
from telecine.base.files import atomic_write, read_json, write_json
from telecine.evaluation.comparable import check_protocols, indices_of_videos, shared_metrics
from telecine.evaluation.metrics.metric import DIRECTIONS, Better
from telecine.evaluation.plots import COLOURS, plot_frames
from telecine.evaluation.result import FRAMES_FILE, SavedEvaluation

_CONFIDENCE = 0.95
_NUM_RESAMPLES = 10_000
_SEED = 0
_RESAMPLES_PER_BATCH = 100  # bounds memory
# Over fewer videos, a bootstrap is clearly too narrow.
_NUM_VIDEOS = 10
_NUM_TICKS = 5  # of an axis, at most: the numbers of more have no room


@dataclass(frozen=True)
class Difference:
    """The values of two evaluations, A and B, in one metric, and their difference."""

    name: str
    """The metric, or its distance from the best value for metrics that are best near a number."""
    first: float
    second: float
    mean: float
    """Mean over clips of B - A."""
    interval: tuple[float, float] | None
    """The 95 % bootstrap interval of the mean, over videos. None for a single video, and for metrics of a set."""
    larger_is_better: bool

    @property
    def better(self) -> Literal["A", "B", "undecided"]:
        """Which evaluation is better; "undecided" if the interval contains 0 or NaN, or does not exist."""
        if self.interval is None:
            return "undecided"
        low, high = self.interval
        if low > 0:
            return "B" if self.larger_is_better else "A"
        if high < 0:
            return "A" if self.larger_is_better else "B"
        return "undecided"

    def text(self) -> str:
        """Return the difference with its interval."""
        if self.interval is None:
            return f"{self.mean:+.4g}"
        return f"{self.mean:+.4g} [{self.interval[0]:+.4g}, {self.interval[1]:+.4g}]"


@dataclass(frozen=True)
class Comparison:
    """The differences of two evaluations of the same clips."""

    differences: list[Difference]
    warnings: list[str]
    """Differences of the protocols that leave the values comparable."""
    num_clips: int
    num_videos: int
    first: str
    """The output folder of evaluation A."""
    second: str
    """The output folder of evaluation B."""

    def print_to(self, console: Console) -> None:
        """Print a line for each metric, which evaluation is A and which is B, and the warnings."""
        clips = f"{self.num_clips} clips of {count(self.num_videos, 'video')}"
        title = f"{clips}, {_CONFIDENCE:.0%} intervals over videos"
        table = Table("metric", "A", "B", "B - A", "better", title=title)
        for difference in self.differences:
            first = f"{difference.first:.4f}"
            second = f"{difference.second:.4f}"
            table.add_row(difference.name, first, second, difference.text(), difference.better)
        console.print(table)
        console.print(f"A: {self.first}", soft_wrap=True, markup=False)
        console.print(f"B: {self.second}", soft_wrap=True, markup=False)
        if self.num_videos == 1:
            console.print("undecided: clips of one video have no interval over videos")
        elif self.num_videos < _NUM_VIDEOS:
            text = f"few videos: the intervals over {self.num_videos} are too narrow to rely on"
            console.print(text)
        for warning in self.warnings:
            console.print(f"differs: {warning}", soft_wrap=True)


def compare(
    first: str | Path, second: str | Path, *, output: str | Path | None = None
) -> Comparison:
    """Compare two evaluations clip by clip: B - A, with 95 % bootstrap intervals over videos.

    Args:
        first: The output folder of evaluation A.
        second: That of evaluation B.
        output: A folder for comparison.json, comparison.png, and comparison_frames.png (by frame position in a clip).

    Raises:
        FileNotFoundError: A folder lacks a file of an evaluation.
        ValueError: The two did not measure the same clips in the same way. The message names what differs.
    """
    evaluation_a = SavedEvaluation.read(Path(first))
    evaluation_b = SavedEvaluation.read(Path(second))
    warnings = check_protocols(evaluation_a.protocol, evaluation_b.protocol)
    better = {}
    set_metrics = []
    for name in shared_metrics([evaluation_a, evaluation_b]):
        if name in evaluation_a.per_clip[0]:
            better[name] = evaluation_a.protocol["better"][name]
        else:
            set_metrics.append(name)
    differences = _paired_differences(evaluation_a.per_clip, evaluation_b.per_clip, better)
    # A Frechet distance is one value per set, without an interval over clips.
    for name in set_metrics:
        a = evaluation_a.metrics[name]
        b = evaluation_b.metrics[name]
        direction = DIRECTIONS[evaluation_a.protocol["better"][name]]
        differences.append(Difference(name, a, b, b - a, None, direction.larger_is_better))
    num_videos = len({clip["source"] for clip in evaluation_a.per_clip})
    comparison = Comparison(
        differences=differences,
        warnings=warnings,
        num_clips=len(evaluation_a.per_clip),
        num_videos=num_videos,
        first=str(first),
        second=str(second),
    )
    if output is not None:
        _write(comparison, Path(first), Path(second), Path(output))
    return comparison


def _paired_differences(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    better: Mapping[str, Better],
) -> list[Difference]:
    """Return the differences of the metrics of `better`, which maps a metric to its better values.

    Metrics that are best near a number are compared by their distance from it.
    """
    video_indices = indices_of_videos(first)
    num_videos = int(video_indices.max()) + 1
    differences = []
    for name, better_values in better.items():
        direction = DIRECTIONS[better_values]
        a = torch.tensor([clip[name] for clip in first], dtype=torch.float64)
        b = torch.tensor([clip[name] for clip in second], dtype=torch.float64)
        label = name
        if direction.has_limit:
            a = (a - direction.best).abs()
            b = (b - direction.best).abs()
            label = f"|{name}|" if direction.best == 0 else f"|{name} - {direction.best:g}|"
        difference = Difference(
            name=label,
            first=float(a.mean()),
            second=float(b.mean()),
            mean=float((b - a).mean()),
            interval=_bootstrap_interval(b - a, video_indices) if num_videos > 1 else None,
            larger_is_better=direction.larger_is_better,
        )
        differences.append(difference)
    return differences


def _bootstrap_interval(values: Tensor, videos: Tensor) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of values `(N,)`, of clips of the videos with these indices.

    Percentile bootstrap (Efron 1979, doi 10.1214/aos/1176344552) with a fixed seed: all metrics use the same resamples.
    Clips of one video are alike, so that whole videos are drawn (Davison & Hinkley 1997, section 3.8).
    """
    num_videos = int(videos.max()) + 1
    sums = values.new_zeros(num_videos).index_add_(0, videos, values)
    counts = values.new_zeros(num_videos).index_add_(0, videos, torch.ones_like(values))
    generator = torch.Generator().manual_seed(_SEED)
    shape = (_RESAMPLES_PER_BATCH, num_videos)
    means = []
    for _ in range(_NUM_RESAMPLES // _RESAMPLES_PER_BATCH):
        drawn = torch.randint(num_videos, shape, generator=generator)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    tail = (1 - _CONFIDENCE) / 2
    low, high = (
        torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    )
    return low, high


def _write(comparison: Comparison, first: Path, second: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    metrics = {}
    for difference in comparison.differences:
        metrics[difference.name] = {**asdict(difference), "verdict": difference.better}
    values = {
        "A": str(first),
        "B": str(second),
        "num_clips": comparison.num_clips,
        "num_videos": comparison.num_videos,
        "confidence": _CONFIDENCE,
        "num_resamples": _NUM_RESAMPLES,
        "seed": _SEED,
        "warnings": comparison.warnings,
        "metrics": metrics,
    }
    write_json(output / "comparison.json", values)
    clips = f"{comparison.num_clips} clips of {comparison.num_videos} videos"
    title = f"B - A over {clips}, {_CONFIDENCE:.0%} intervals over videos; B is better to the right of 0"
    plot_differences(comparison.differences, title, output / "comparison.png")
    curves = {"A": read_json(first / FRAMES_FILE), "B": read_json(second / FRAMES_FILE)}
    plot_frames(curves, output / "comparison_frames.png")


def plot_differences(differences: Sequence[Difference], title: str, path: Path) -> None:
    """Plot each difference with its interval, so that B is better to the right of 0; write a PNG atomically.

    Args:
        differences: The differences, from top to bottom.
        title: The title of the figure.
        path: The file.
    """
    # Takes a second to import, which `telecine --help` must not spend.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 1 + 0.62 * len(differences)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for difference, axes in zip(
        differences, figure.subplots(len(differences), 1, squeeze=False).flat, strict=True
    ):
        low, high = difference.interval or (difference.mean, difference.mean)
        colour = COLOURS[difference.better]
        axes.axvline(0, color="black", linewidth=0.8)
        axes.plot([low, high], [0, 0], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([difference.mean], [0], marker="o", markersize=6, color=colour)
        limit = 1.25 * max(abs(low), abs(high))
        if not 0 < limit < math.inf:  # 0 if the values are equal; NaN is shown as text
            limit = 1.0
        axes.set_xlim((-limit, limit) if difference.larger_is_better else (limit, -limit))
        axes.xaxis.set_major_locator(MaxNLocator(_NUM_TICKS - 1))
        axes.xaxis.set_major_formatter("{x:g}")  # without a factor beside the axis
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.set_ylabel(difference.name, rotation=0, ha="right", va="center", fontsize=9)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.text(
            1.01,
            0.5,
            difference.text(),
            transform=axes.transAxes,
            fontsize=8,
            va="center",
            color=colour,
        )
    atomic_write(path, lambda partial: figure.savefig(partial, format="png"))
