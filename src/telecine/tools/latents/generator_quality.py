"""Measures that predict generator quality without training one: the interpolated Frechet distance, and VIV."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.terminal import with_progress
from telecine.evaluation.latent_statistics import (
    EPSILON,
    channel_rows,
    dead_channels,
    standardised,
)
from telecine.evaluation.metrics.frechet import (
    FeatureNetwork,
    features_of,
    frechet_or_nan,
    frechet_undefined,
)
from telecine.models import VideoAutoencoder

RECONSTRUCTIONS = "reconstructions"
INTERPOLATED = "interpolated latents"
_NUM_FLIP_FLOPS = 5  # as in the authors' code


def nearest_neighbours(latents: Tensor) -> Tensor:
    """Return the index of the other latent with the largest cosine similarity, for each of `(N, C, t, h, w)`."""
    rows = F.normalize(latents.flatten(1), dim=1)
    similarity = rows @ rows.T
    similarity.fill_diagonal_(-math.inf)
    return similarity.argmax(1)


def halfway(a: Tensor, b: Tensor) -> Tensor:
    """Return the points in the middle between pairs of latents `(N, C, t, h, w)`, on the great circle through them.

    That is the spherical linear interpolation at 1/2: the mean, divided by the cosine of half of the angle.
    """
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).clamp(-1, 1)
    cosine_of_half = ((1 + cosine) / 2).sqrt().clamp(min=EPSILON)
    return (a + b) / 2 / cosine_of_half.view(-1, 1, 1, 1, 1)


def interpolated_latents(latents: Tensor) -> Tensor:
    """Return each of `(N, C, t, h, w)` halfway to its nearest neighbour, in channels of mean 0 and variance 1."""
    std, mean = torch.std_mean(latents.double(), (0, 2, 3, 4), keepdim=True, correction=0)
    std = std.clamp(min=EPSILON)
    z = (latents - mean) / std
    between = halfway(z, z[nearest_neighbours(z)])
    return (between * std + mean).to(latents)


def check_enough_clips(features: Tensor, *, name: str, value: object, clips: str) -> None:
    """Check that a Frechet distance to features is defined.

    Args:
        features: The features of clips, `(N, D)`.
        name: The setting that requests the distance.
        value: Its value.
        clips: What the clips are made of.

    Raises:
        ValueError: There are too few clips.
    """
    reason = frechet_undefined(features)
    if reason is not None:
        remedy = f"A larger `max_clips`, and more {clips}, give more clips."
        raise argument_error(name, "left out here", f"{value}: {reason}", remedy)


def measure_frechet(
    model: VideoAutoencoder, latents: Tensor, network: FeatureNetwork, reference: Tensor
) -> dict[str, float]:
    """Return the Frechet distances of the decoded latents, and of decoded interpolated ones, to the clips.

    The second is the interpolated FID of arXiv:2603.05630, on features of video.

    Args:
        model: The autoencoder.
        latents: The latents of the clips, `(N, C, t, h, w)` on the CPU.
        network: Maps videos to features.
        reference: The features of the clips, `(N, D)`.

    Returns:
        The distances by `RECONSTRUCTIONS` and `INTERPOLATED`; NaN if features of a set are not finite.
    """
    device = next(model.parameters()).device
    sets = {RECONSTRUCTIONS: latents, INTERPOLATED: interpolated_latents(latents)}
    distances = {}
    for name, changed in sets.items():
        progress = with_progress(changed.split(1), f"decoding {name}", total=len(changed))
        decoded = (model.decode(latent.to(device)).float() for latent in progress)
        features = features_of(decoded, network)
        distances[name] = frechet_or_nan(features=features, reference=reference)
    return distances


def velocity_irreducible_variance(latents: Tensor) -> float | None:
    """Return the velocity irreducible variance (VIV) of latents, arXiv:2606.03578, per value; smaller is better.

    It is what the best predictor of the velocity, noise less latent, leaves of it, if latents are normal, averaged
    over all levels of noise: `pi/2 * mean(sqrt(lambda))` with the eigenvalues of the covariance (equation 5), in units
    of the channels' variance. White noise has pi/2. The covariance is that of channels times that of positions, in
    time and space, fitted in turns (flip-flop, equation 3), with the total variance of the latents.

    The paper has a covariance for each class; clips have none, so this is that of all of them. Dead channels are left
    out: a constant one has an eigenvalue of 0, and would halve the mean beside one of white noise.

    Args:
        latents: `(N, C, t, h, w)`.

    Returns:
        The value; None if there are too few latents: the covariance of positions would be singular. NaN if a latent is
        not finite, or all channels are constant.
    """
    if not latents.isfinite().all():
        return math.nan
    std = channel_rows(latents).std(1, correction=0).tolist()
    dead = dead_channels(std)
    live = [channel for channel in range(len(std)) if channel not in dead]
    if not live:
        return math.nan
    z = standardised(latents[:, live]).flatten(2)
    z = z - z.mean(0)
    num_clips, num_channels, num_positions = z.shape
    if num_clips * num_channels <= num_positions or num_clips * num_positions <= num_channels:
        return None
    inverse_of_positions = torch.eye(num_positions, dtype=z.dtype)
    for _ in range(_NUM_FLIP_FLOPS):
        of_channels = torch.einsum("ncs,st,ndt->cd", z, inverse_of_positions, z)
        of_channels = of_channels / (num_clips * num_positions)
        inverse_of_channels = torch.linalg.pinv(of_channels, hermitian=True)
        of_positions = torch.einsum("ncs,cd,ndt->st", z, inverse_of_channels, z)
        of_positions = of_positions / (num_clips * num_channels)
        inverse_of_positions = torch.linalg.pinv(of_positions, hermitian=True)
    channel_values = torch.linalg.eigvalsh(of_channels).clamp(min=0)
    position_values = torch.linalg.eigvalsh(of_positions).clamp(min=0)
    values = torch.outer(channel_values, position_values)
    total = z.square().sum() / num_clips
    values = values * (total / values.sum())
    return float(math.pi / 2 * values.sqrt().mean())
