"""How one evaluation differs from another in one metric, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from telecine.evaluation.definitions import DEFINITIONS, Better

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
SEED = 0
RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class Difference:
    """How the second of two evaluations, B, differs from the first, A, in one metric."""

    name: str
    """The metric; where a value is best near a number, the distance to it."""
    first: float
    """The figure of A."""
    second: float
    """The figure of B."""
    mean: float
    """B less A: the mean over clips."""
    interval: tuple[float, float] | None
    """Where the mean lies with a confidence of 95 %, by a bootstrap over clips; None for figures of the whole set."""
    larger_is_better: bool
    """Whether larger values of the metric are better."""

    @property
    def verdict(self) -> str:
        """Which is better, "A" or "B", or "undecided" where the interval holds 0, or there is none, or no number."""
        if self.interval is None or not (self.interval[0] > 0 or self.interval[1] < 0):
            return "undecided"
        return "B" if (self.interval[0] > 0) == self.larger_is_better else "A"

    def in_words(self) -> str:
        """Return the difference with its interval, short enough for a table."""
        if self.interval is None:
            return f"{self.mean:+.4g}"
        return f"{self.mean:+.4g} [{self.interval[0]:+.4g}, {self.interval[1]:+.4g}]"


def paired_differences(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]], *, names: Sequence[str]
) -> list[Difference]:
    """Return the mean difference of each metric over the same clips, with its bootstrap interval."""
    a, b = (
        torch.tensor([[comparable(name, clip[name]) for name in names] for clip in clips], dtype=torch.float64)
        for clips in (first, second)
    )
    low, high = bootstrap_interval(b - a)
    columns = zip(names, a.mean(0), b.mean(0), (b - a).mean(0), low, high, strict=True)
    return [
        Difference(
            name=title(name),
            first=float(mean_a),
            second=float(mean_b),
            mean=float(mean),
            interval=(float(lowest), float(highest)) if len(a) > 1 else None,
            larger_is_better=DEFINITIONS[name].better == "larger",
        )
        for name, mean_a, mean_b, mean, lowest, highest in columns
    ]


def set_difference(name: str, first: Mapping[str, float], second: Mapping[str, float]) -> Difference:
    """Return the difference of a distance between whole sets, which has no interval over clips; smaller is better."""
    return Difference(name, first[name], second[name], second[name] - first[name], None, larger_is_better=False)


def bootstrap_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of each column's mean over rows `(N, M)`: quantiles of the means of resampled rows.

    The percentile bootstrap (Efron 1979, doi 10.1214/aos/1176344552), 10 000 resamples of a fixed seed; all columns
    see the same resamples.
    """
    generator = torch.Generator().manual_seed(SEED)
    shape = (RESAMPLES_AT_ONCE, len(values))
    means = [
        values[torch.randint(len(values), shape, generator=generator)].mean(1)
        for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype), dim=0)
    return low, high


def comparable(name: str, value: float) -> float:
    """Return a metric's value, or its distance from the best one where that is a number in between."""
    better: Better = DEFINITIONS[name].better
    return abs(value - float(better.split()[-1])) if better.startswith("nearest") else value


def title(name: str) -> str:
    """Return what `comparable` values of a metric are called."""
    better: Better = DEFINITIONS[name].better
    return {"nearest to 0": f"|{name}|", "nearest to 1": f"|{name} - 1|"}.get(better, name)
