"""The difference of two evaluations in one metric, with a bootstrap confidence interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from telecine.evaluation.definitions import DEFINITIONS

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
SEED = 0
# Bounds the memory of the bootstrap.
RESAMPLES_PER_BATCH = 100


@dataclass(frozen=True)
class Difference:
    """How the second of two evaluations, B, differs from the first, A, in one metric."""

    name: str
    """The metric, or its distance from the best value for metrics that are best near a number."""
    first: float
    """The figure of A."""
    second: float
    """The figure of B."""
    mean: float
    """The mean over clips of B - A."""
    interval: tuple[float, float] | None
    """The 95 % bootstrap interval of the mean over clips; None for figures of the whole set."""
    larger_is_better: bool
    """Whether larger values of the metric are better."""

    @property
    def better(self) -> Literal["A", "B", "undecided"]:
        """Which evaluation is better; "undecided" if the interval contains 0 or NaN, or does not exist."""
        if self.interval is None or not (self.interval[0] > 0 or self.interval[1] < 0):
            return "undecided"
        return "B" if (self.interval[0] > 0) == self.larger_is_better else "A"

    def text(self) -> str:
        """Return the difference with its interval, for a table."""
        if self.interval is None:
            return f"{self.mean:+.4g}"
        return f"{self.mean:+.4g} [{self.interval[0]:+.4g}, {self.interval[1]:+.4g}]"


def paired_differences(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]], *, names: Sequence[str]
) -> list[Difference]:
    """Return the mean difference of each metric over the same clips, with its bootstrap interval."""
    a, b = (
        torch.tensor([[comparison_value(name, clip[name]) for name in names] for clip in clips], dtype=torch.float64)
        for clips in (first, second)
    )
    low, high = bootstrap_interval(b - a)
    columns = zip(names, a.mean(0), b.mean(0), (b - a).mean(0), low, high, strict=True)
    return [
        Difference(
            name=comparison_name(name),
            first=float(mean_a),
            second=float(mean_b),
            mean=float(mean),
            interval=(float(lower), float(upper)) if len(a) > 1 else None,
            larger_is_better=DEFINITIONS[name].better == "larger",
        )
        for name, mean_a, mean_b, mean, lower, upper in columns
    ]


def set_difference(name: str, first: Mapping[str, float], second: Mapping[str, float]) -> Difference:
    """Return the difference of a Frechet distance, which is one figure per set and has no interval over clips."""
    return Difference(name, first[name], second[name], second[name] - first[name], None, larger_is_better=False)


def bootstrap_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 95 % confidence interval of each column's mean over rows `(N, M)`, as two tensors `(M,)`.

    Percentile bootstrap (Efron 1979, doi 10.1214/aos/1176344552) with 10 000 resamples and a fixed seed. All columns
    use the same resamples.
    """
    generator = torch.Generator().manual_seed(SEED)
    shape = (RESAMPLES_PER_BATCH, len(values))
    means = [
        values[torch.randint(len(values), shape, generator=generator)].mean(1)
        for _ in range(NUM_RESAMPLES // RESAMPLES_PER_BATCH)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype), dim=0)
    return low, high


def comparison_value(name: str, value: float) -> float:
    """Return a metric's value, or its distance from the best value for metrics that are best near a number."""
    better = DEFINITIONS[name].better
    return abs(value - float(better.split()[-1])) if better.startswith("nearest") else value


def comparison_name(name: str) -> str:
    """Return the name of a metric's `comparison_value`."""
    return {"nearest to 0": f"|{name}|", "nearest to 1": f"|{name} - 1|"}.get(DEFINITIONS[name].better, name)
