"""Measures of latents `(B, C, t, h, w)`, of training runs and of `telecine latents`."""

import math

import torch
from torch import Tensor

from telecine.models.bottleneck import Bottleneck

DEAD_FRACTION = 0.01  # of the largest standard deviation; a channel with a smaller one is dead
HIGH_FREQUENCY = 0.25  # in cycles per position; the highest frequency of a row of positions is 1/2
EPSILON = 1e-12


def channel_rows(latents: Tensor) -> Tensor:
    """Return the values of each channel, `(C, N)` in float64, of latents `(B, C, t, h, w)`."""
    return latents.transpose(0, 1).flatten(1).double()


def _standardised(latents: Tensor) -> Tensor:
    """Return latents with mean 0 and variance 1 in each channel; a constant channel is 0."""
    axes = (0, 2, 3, 4)
    centred = latents.double() - latents.double().mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + EPSILON).sqrt()


def kurtosis(latents: Tensor) -> list[float]:
    """Return the fourth standardised moment of each channel: 3 for a normal distribution, 0 for a constant."""
    return _standardised(latents).pow(4).mean((0, 2, 3, 4)).tolist()


def dead_channels(std: list[float]) -> list[int]:
    """Return the indices of the channels whose standard deviation is at most `DEAD_FRACTION` of the largest."""
    return [index for index, value in enumerate(std) if value <= DEAD_FRACTION * max(std)]


def num_dead(std: list[float]) -> float:
    """Return the number of dead channels, NaN if a standard deviation is not finite."""
    return float(len(dead_channels(std))) if all(map(math.isfinite, std)) else math.nan


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
    power = torch.fft.fft2(_standardised(latents)).abs().square().mean((0, 1, 2))
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64) for size in power.shape)
    radius = (rows[:, None].square() + columns.square()).sqrt()
    side = min(power.shape)
    bins = (radius * side).round().long()
    sums = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(0, bins.flatten(), power.flatten())
    sums = sums[1:] / sums[1:].sum().clamp(min=EPSILON)
    return [(index + 1) / side for index in range(len(sums))], sums.tolist()


def high_frequency_share(latents: Tensor) -> float:
    """Return the share of the spatial power above `HIGH_FREQUENCY`, in [0, 1]; white noise has about 0.8."""
    return sum(share for frequency, share in zip(*radial_spectrum(latents), strict=True) if frequency > HIGH_FREQUENCY)


def autocorrelation(latents: Tensor, axes: tuple[int, ...], max_lag: int) -> list[float]:
    """Return the correlation of positions 1, 2, ... up to `max_lag` apart, a mean over all channels and `axes`."""
    z = _standardised(latents)

    def correlation(axis: int, lag: int) -> float:
        return (z.narrow(axis, 0, z.shape[axis] - lag) * z.narrow(axis, lag, z.shape[axis] - lag)).mean().item()

    lags = range(1, min(max_lag + 1, *(z.shape[axis] for axis in axes)))
    return [sum(correlation(axis, lag) for axis in axes) / len(axes) for lag in lags]


def code_usage(codebook: Bottleneck | None, latents: Tensor) -> dict[str, float]:
    """Return how latents `(B, C, t, h, w)` use their codebook, see `DEFINITIONS`: NaN if a latent is not finite.

    `codes_used` is at most the number of codes divided by the codebook's size. Without a codebook, nothing is returned.
    """
    if codebook is None:
        return {}
    if not latents.isfinite().all():  # it has no code
        return dict.fromkeys(("codes_used", "code_entropy", "code_perplexity"), math.nan)
    groups = codebook.indices(latents).cpu().transpose(0, 1).flatten(1)  # MPS has no float64, for what follows
    counts = torch.stack([torch.bincount(group, minlength=codebook.codebook_size) for group in groups]).double()
    entropy = torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1) / math.log(2)
    return {
        "codes_used": (counts > 0).double().mean().item(),
        "code_entropy": entropy.mean().item(),
        "code_perplexity": entropy.exp2().mean().item(),
    }


def latent_summary(latents: Tensor) -> dict[str, float]:
    """Return the figures of latents `(B, C, t, h, w)` that a training run logs, all NaN if a latent is not finite."""
    std = channel_rows(latents).std(1, correction=0).tolist()
    return {
        "std": sum(std) / len(std),
        "dead_channels": num_dead(std),
        "effective_rank": effective_rank(covariance_eigenvalues(latents)),
        "high_frequencies": high_frequency_share(latents),
    }
