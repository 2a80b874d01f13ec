"""Measures of latents `(B, C, t, h, w)`, of training runs and of `telecine latents`."""

import math

import torch
from torch import Tensor

from telecine.models.bottleneck import Bottleneck

DEAD_FRACTION = 0.01  # of the largest standard deviation; a channel with a smaller one is dead
HIGH_FREQUENCY = 0.25  # in cycles per position; the highest frequency of a row of positions is 1/2
EPSILON = 1e-12


def latent_summary(latents: Tensor) -> dict[str, float]:
    """Return what a training run logs about latents `(B, C, t, h, w)`; all NaN if a latent is not finite."""
    std = channel_rows(latents).std(1, correction=0).tolist()
    return {
        "std": sum(std) / len(std),
        "dead_channels": num_dead(std),
        "effective_rank": effective_rank(covariance_eigenvalues(latents)),
        "high_frequencies": high_frequency_share(latents),
    }


def channel_rows(latents: Tensor) -> Tensor:
    """Return the values of each channel, `(C, N)` in float64, of latents `(B, C, t, h, w)`."""
    return latents.transpose(0, 1).flatten(1).double()


def standardised(latents: Tensor) -> Tensor:
    """Return latents with mean 0 and variance 1 in each channel; a constant channel is 0."""
    axes = (0, 2, 3, 4)
    centred = latents.double() - latents.double().mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + EPSILON).sqrt()


def kurtosis(latents: Tensor) -> list[float]:
    """Return the fourth standardised moment of each channel: 3 for a normal distribution, 0 for a constant."""
    return standardised(latents).pow(4).mean((0, 2, 3, 4)).tolist()


def dead_channels(std: list[float]) -> list[int]:
    """Return the indices of the channels whose standard deviation is at most `DEAD_FRACTION` of the largest."""
    threshold = DEAD_FRACTION * max(std)
    return [index for index, value in enumerate(std) if value <= threshold]


def num_dead(std: list[float]) -> float:
    """Return the number of dead channels, NaN if a standard deviation is not finite."""
    if not all(math.isfinite(value) for value in std):
        return math.nan
    return float(len(dead_channels(std)))


def covariance_eigenvalues(latents: Tensor) -> list[float]:
    """Return the eigenvalues of the channels' covariance, the largest first; NaN if a latent is not finite."""
    rows = channel_rows(latents)
    rows = rows - rows.mean(1, keepdim=True)
    covariance = rows @ rows.T / rows.shape[1]
    if not covariance.isfinite().all():  # `eigvalsh` would raise
        return [math.nan] * len(covariance)
    return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).tolist()


def effective_rank(eigenvalues: list[float]) -> float:
    """Return the exponential of the entropy of the eigenvalues' shares (Roy and Vetterli, 2007): 1 to their number."""
    shares = torch.tensor(eigenvalues, dtype=torch.float64)
    shares = shares / shares.sum().clamp(min=EPSILON)
    return float(torch.special.entr(shares).sum().exp())


def radial_spectrum(latents: Tensor) -> tuple[list[float], list[float]]:
    """Return frequencies in cycles per position, 0 left out, and the share of the spatial power at each; sum 1."""
    power = torch.fft.fft2(standardised(latents)).abs().square().mean((0, 1, 2))
    height, width = power.shape
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.fftfreq(width, dtype=torch.float64)
    radius = (rows[:, None].square() + columns.square()).sqrt()
    side = min(height, width)
    bins = (radius * side).round().long()
    sums = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(
        0, bins.flatten(), power.flatten()
    )
    sums = sums[1:]
    shares = sums / sums.sum().clamp(min=EPSILON)
    frequencies = [(index + 1) / side for index in range(len(shares))]
    return frequencies, shares.tolist()


def high_frequency_share(latents: Tensor) -> float:
    """Return the share of the spatial power above `HIGH_FREQUENCY`, in [0, 1]; white noise has about 0.8."""
    total = 0.0
    for frequency, share in zip(*radial_spectrum(latents), strict=True):
        if frequency > HIGH_FREQUENCY:
            total += share
    return total


def autocorrelation(latents: Tensor, axes: tuple[int, ...], max_lag: int) -> list[float]:
    """Return the correlation of positions 1, 2, ... apart, a mean over all channels and axes.

    Args:
        latents: `(B, C, t, h, w)`.
        axes: The axes along which positions are apart, e.g. (3, 4) for both directions in space.
        max_lag: Largest distance. It is less if an axis is shorter.
    """
    z = standardised(latents)
    shortest = min(z.shape[axis] for axis in axes)
    correlations = []
    for lag in range(1, min(max_lag + 1, shortest)):
        total = 0.0
        for axis in axes:
            length = z.shape[axis] - lag
            first = z.narrow(axis, 0, length)
            second = z.narrow(axis, lag, length)
            total += (first * second).mean().item()
        correlations.append(total / len(axes))
    return correlations


def code_usage(codebook: Bottleneck | None, latents: Tensor) -> dict[str, float]:
    """Return how latents `(B, C, t, h, w)` use their codebook: NaN if a latent is not finite.

    Returns:
        Means over the codes of a position: `codes_used`, the share of the codebook that occurs, at most the number of
        codes divided by the codebook's size; `code_entropy` of their frequencies in bits; `code_perplexity`, 2 to that
        power. Without a codebook, nothing.
    """
    if codebook is None:
        return {}
    if not latents.isfinite().all():  # it has no code
        return {"codes_used": math.nan, "code_entropy": math.nan, "code_perplexity": math.nan}
    # MPS has no float64, for what follows.
    groups = codebook.indices(latents).cpu().transpose(0, 1).flatten(1)
    group_counts = [torch.bincount(group, minlength=codebook.codebook_size) for group in groups]
    counts = torch.stack(group_counts).double()
    entropy = torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1) / math.log(2)
    return {
        "codes_used": (counts > 0).double().mean().item(),
        "code_entropy": entropy.mean().item(),
        "code_perplexity": entropy.exp2().mean().item(),
    }
