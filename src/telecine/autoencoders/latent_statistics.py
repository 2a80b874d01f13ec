"""Mean and standard deviation of each channel of the latent, by which generators normalise it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from telecine.base.checks import argument_error

SMALLEST_STD = 1e-6
# The keys of configurations that normalise the latent.
NORMALISATION_KEYS = ("latents_mean", "latents_std", "scaling_factor", "shift_factor")


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of the latent over a data set, of each channel and of all values together."""

    mean: list[float]
    """Of each channel."""
    std: list[float]
    """Of each channel."""

    @property
    def overall_mean(self) -> float:
        """The mean of all values: the `shift_factor` of diffusers."""
        return sum(self.mean) / len(self.mean)

    @property
    def overall_std(self) -> float:
        """The standard deviation of all values; 1 over it is the `scaling_factor` of diffusers."""
        squares = sum(m**2 + s**2 for m, s in zip(self.mean, self.std, strict=True)) / len(self.mean)
        return float(max(squares - self.overall_mean**2, 0.0) ** 0.5)


class ChannelMoments:
    """Sums over the values of each channel, from which the statistics of any number of latents follow exactly.

    The sums are float64 on the CPU, and can be added over processes.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(3, 0, dtype=torch.float64)  # number, sum and sum of squares of each channel

    def add(self, latent: Tensor) -> None:
        """Add a latent `(B, C, ...)`.

        Raises:
            ValueError: It has another number of channels than the ones before.
        """
        rows = latent.detach().transpose(0, 1).flatten(1).cpu().double()
        count = torch.full((len(rows),), float(rows.shape[1]), dtype=torch.float64)
        sums = torch.stack([count, rows.sum(1), rows.square().sum(1)])
        if self.sums.shape[1] not in (0, len(rows)):
            contract = f"of {self.sums.shape[1]} channels, as the latents before"
            raise argument_error("latent", contract, latent, "Measure one model at a time.")
        self.sums = sums if self.sums.shape[1] == 0 else self.sums + sums

    def statistics(self) -> LatentStatistics:
        """Return the statistics of everything added; a constant channel can be divided by its standard deviation.

        Raises:
            ValueError: Nothing was added.
        """
        if self.sums.shape[1] == 0:
            raise argument_error("latents", "at least one", "none", "Add one.")
        count, total, squares = self.sums
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=SMALLEST_STD**2)
        return LatentStatistics(mean.tolist(), variance.sqrt().tolist())
