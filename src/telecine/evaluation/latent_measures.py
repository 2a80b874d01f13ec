"""What a generator meets in a latent space: measures of latents, each a function of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from telecine.autoencoders.bottleneck import Bottleneck
from telecine.base.shapes import Video
from telecine.losses.latent import resized
from telecine.perceptual import pick_frames

# A channel is dead if its standard deviation is below this fraction of the largest one.
DEAD_FRACTION = 0.01
# In cycles per position; the highest frequency of a row of positions is 1/2.
HIGH_FREQUENCY = 0.25
EPSILON = 1e-12


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
    """Return the channels that are next to constant, from the standard deviation of each."""
    return [index for index, value in enumerate(std) if value <= DEAD_FRACTION * max(std)]


def covariance_eigenvalues(latents: Tensor) -> list[float]:
    """Return the eigenvalues of the channels' covariance over all positions, the largest first.

    They are NaN if a latent is not finite.
    """
    rows = channel_rows(latents)
    rows = rows - rows.mean(1, keepdim=True)
    covariance = rows @ rows.T / rows.shape[1]
    if not covariance.isfinite().all():  # `eigvalsh` would raise
        return [math.nan] * len(covariance)
    values = torch.linalg.eigvalsh(covariance)
    return values.flip(0).clamp(min=0).tolist()


def effective_rank(eigenvalues: list[float]) -> float:
    """Return the exponential of the entropy of the eigenvalues' shares (Roy and Vetterli, 2007): 1 to their number."""
    shares = torch.tensor(eigenvalues, dtype=torch.float64)
    shares = shares / shares.sum().clamp(min=EPSILON)
    return float(torch.special.entr(shares).sum().exp())


def radial_spectrum(latents: Tensor) -> tuple[list[float], list[float]]:
    """Return frequencies and the share of the spatial power at each, over all frames and channels.

    Channels are standardised before, so that each counts the same. Frequencies are in cycles per position; the power
    of a frame's mean, at frequency 0, is left out, and the shares of all others, the corners beyond 1/2 included, sum
    to 1.
    """
    z = standardised(latents)
    power = torch.fft.fft2(z).abs().square().mean((0, 1, 2))
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64) for size in power.shape)
    radius = (rows[:, None].square() + columns.square()).sqrt()
    side = min(power.shape)
    bins = (radius * side).round().long()
    sums = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(0, bins.flatten(), power.flatten())
    sums = sums[1:] / sums[1:].sum().clamp(min=EPSILON)
    return [(index + 1) / side for index in range(len(sums))], sums.tolist()


def high_frequency_share(latents: Tensor) -> float:
    """Return the share of the spatial power above `HIGH_FREQUENCY`, in [0, 1]; white noise has about 0.8."""
    frequencies, shares = radial_spectrum(latents)
    return sum(share for frequency, share in zip(frequencies, shares, strict=True) if frequency > HIGH_FREQUENCY)


def autocorrelation(latents: Tensor, axes: tuple[int, ...], max_lag: int) -> list[float]:
    """Return the correlation of positions that are 1, 2, ... apart along axes, a mean over all channels.

    Args:
        latents: `(B, C, t, h, w)`.
        axes: The axes whose mean is returned: 2 for time, 3 and 4 for space.
        max_lag: Largest distance; shorter if an axis is.
    """
    z = standardised(latents)
    lags = range(1, min(max_lag + 1, *(z.shape[axis] for axis in axes)))
    return [
        sum((z.narrow(a, 0, z.shape[a] - lag) * z.narrow(a, lag, z.shape[a] - lag)).mean().item() for a in axes)
        / len(axes)
        for lag in lags
    ]


def scaled_video(video: Video, latent: Tensor) -> Video:
    """Return the video at the size of its latent: of each latent frame the last frame it depends on, scaled down."""
    num_latent, num_frames = latent.shape[2], video.shape[2]
    step = (num_frames - 1) / max(num_latent - 1, 1)
    last = (torch.arange(num_latent, device=video.device) * step).round().long().expand(len(video), -1)
    frames = pick_frames(video, last).unflatten(0, (len(video), -1)).transpose(1, 2)
    return resized(frames, list(latent.shape[-2:]))


def code_usage(codebook: Bottleneck | None, latents: Tensor) -> dict[str, float]:
    """Return how discrete latents use their codebook, means over the codes of a position; nothing without a codebook.

    `codes_used` is the share of the codebook that occurs, at most the number of codes divided by its size;
    `code_entropy` the entropy of the codes' frequencies in bits, and `code_perplexity` 2 to that power. They are NaN if
    a latent is not finite.

    Args:
        codebook: See `VideoAutoencoder.codebook`.
        latents: `(B, C, t, h, w)` of all clips, on the codebook's device.
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


def summary(latents: Tensor) -> dict[str, float]:
    """Return a few numbers about latents `(B, C, t, h, w)`, for the log of a training run.

    `std` is the mean of the channels' standard deviations, `high_frequencies` the share of the spatial power above a
    quarter of a cycle per position. All are NaN if a latent is not finite.
    """
    eigenvalues = covariance_eigenvalues(latents)
    std = channel_rows(latents).std(1, correction=0).tolist()
    return {
        "std": sum(std) / len(std),
        "dead_channels": float(len(dead_channels(std))) if all(map(math.isfinite, std)) else math.nan,
        "effective_rank": effective_rank(eigenvalues),
        "high_frequencies": high_frequency_share(latents),
    }
