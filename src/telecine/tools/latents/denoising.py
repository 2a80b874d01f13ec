"""How well noise is removed from latents: by a trained generator, and by the best linear denoiser, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.shapes import VALUE_RANGE, Video
from telecine.data import bytes_from_video
from telecine.evaluation.metrics.frechet import FeatureNetwork, frechet_distance, frechet_undefined
from telecine.losses.perceptual import as_rgb
from telecine.report.clips import write_preview
from telecine.video.frames import as_shown

if TYPE_CHECKING:
    from telecine.models.diffusers.denoiser import LatentDenoiser

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the noise
NUM_SHOWN = 6  # clips beside each other in the video of samples
_SAMPLE_STEPS = 50
_FPS = 8.0
# Patches for each of their values from which a covariance is estimated, at least: the filter of white noise then leaves
# at most 2 % more than the best one.
_ROWS_PER_VALUE = 32
_MAX_VALUES = 1024


@dataclass(frozen=True)
class LatentProbe:
    """The measures of a generator of one model's latents."""

    losses: list[float]
    """Mean squared error of the velocity at each of `LEVELS`, on unseen videos."""
    linear_losses: list[float]
    """The same of the best linear denoiser of the training latents."""
    patch: tuple[int, int, int]
    """Frames, height and width of the patches of the linear denoiser."""
    seconds: float
    """Time of the training."""
    samples: str
    """Path, from the page, of the video of unseen clips, reconstructions and samples, from top to bottom."""
    frechet: dict[str, float] = field(default_factory=dict)
    """Frechet distances, by the names of the two sets; NaN if features of one are not finite."""

    def shares(self) -> list[float]:
        """Return the loss at each level as a share of the linear denoiser's."""
        return [loss / linear for loss, linear in zip(self.losses, self.linear_losses, strict=True)]

    def figures(self) -> dict[str, float]:
        """Return the figures of a line of a table."""
        figures = {
            "probe: velocity loss": sum(self.losses) / len(self.losses),
            "probe: share of the linear loss": sum(self.losses) / sum(self.linear_losses),
            "probe: seconds": self.seconds,
        }
        for pair, value in self.frechet.items():
            figures[f"probe: Frechet distance, {pair}"] = value
        return figures


@torch.no_grad()
def velocity_losses(
    velocity: Callable[[Tensor, float], Tensor], latents: Iterable[Tensor], *, seed: int
) -> list[float]:
    """Return the mean squared error of the velocity at each of `LEVELS`.

    Args:
        velocity: Maps noisy latents `(B, C, t, h, w)` and their level to the predicted velocity.
        latents: Batches of normalised latents.
        seed: Of the noise, which depends on it and on the shapes of the latents alone: predictions compare on the same
            noisy latents.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = [0.0] * len(LEVELS)
    count = 0
    for latent in latents:
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        for index, level in enumerate(LEVELS):
            predicted = velocity((1 - level) * latent + level * noise, level)
            sums[index] += float((predicted - (noise - latent)).square().sum())
        count += latent.numel()
    return [total / count for total in sums]


@dataclass(frozen=True)
class WienerFilter:
    """The linear map of noisy patches of latents with the smallest squared error, from their mean and covariance.

    With a latent `x`, normal noise `eps` and `x_t = (1 - t) x + t eps`, it predicts `x` (Wiener, 1949), and with it the
    velocity `eps - x`. In the direction of an eigenvector of the covariance with the eigenvalue `v`, it leaves a
    velocity error of `v / ((1 - t)^2 v + t^2)`.
    """

    patch: tuple[int, int, int]
    """Frames, height and width of a patch."""
    mean: Tensor
    """Mean of a patch, `(D,)` in float64."""
    eigenvalues: Tensor
    """Eigenvalues of the covariance, `(D,)`."""
    eigenvectors: Tensor
    """Columns `(D, D)`."""

    @classmethod
    def fit(cls, latents: Tensor, patch: tuple[int, int, int] | None = None) -> WienerFilter:
        """Return the filter of latents for patches anywhere in them.

        Args:
            latents: `(N, C, t, h, w)`.
            patch: Frames, height and width of a patch. None: as large as the number of latents allows.

        Raises:
            ValueError: There are too few latents for patches of one position.
        """
        if patch is None:
            patch = largest_patch(latents)
        rows = _rows(latents, patch).cpu().double()
        eigenvalues, eigenvectors = torch.linalg.eigh(rows.T.cov(correction=0))
        return cls(patch, rows.mean(0), eigenvalues.clamp(min=0), eigenvectors)

    def velocity(self, noisy: Tensor, level: float) -> Tensor:
        """Return the predicted velocity of noisy latents `(N, C, t, h, w)` at a level in (0, 1]."""
        gain = (1 - level) * self.eigenvalues / ((1 - level) ** 2 * self.eigenvalues + level**2)
        rows = _rows(noisy, self.patch).cpu().double()
        clean = (
            self.mean
            + (rows - (1 - level) * self.mean) @ (self.eigenvectors * gain) @ self.eigenvectors.T
        )
        p, q, r = self.patch
        num_frames, height, width = noisy.shape[2:]
        velocity = rearrange(
            (rows - clean) / level,
            "(b t h w) (c p q r) -> b c (t p) (h q) (w r)",
            p=p,
            q=q,
            r=r,
            t=num_frames // p,
            h=height // q,
            w=width // r,
        )
        return velocity.to(noisy)


def _rows(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    p, q, r = patch
    return rearrange(latents, "b c (t p) (h q) (w r) -> (b t h w) (c p q r)", p=p, q=q, r=r)


def largest_patch(latents: Tensor) -> tuple[int, int, int]:
    """Return the frames, height and width of the largest patches whose covariance the latents determine.

    Raises:
        ValueError: There are too few latents `(N, C, t, h, w)` for patches of one position.
    """
    channels, *size = latents.shape[1:]
    num_positions = min(_MAX_VALUES, math.isqrt(latents.numel() // _ROWS_PER_VALUE)) // channels
    if num_positions == 0:
        contract = f"at least {_ROWS_PER_VALUE * channels} positions for {channels} channels"
        raise argument_error("latents", contract, latents, "Use more clips.")
    num_frames, height, width = size
    patches = product(_divisors(num_frames), _divisors(height), _divisors(width))
    small_patches = [patch for patch in patches if math.prod(patch) <= num_positions]
    # Of patches of the same size, the most compact.
    return max(small_patches, key=lambda patch: (math.prod(patch), -sum(patch)))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def measure_denoiser(
    denoiser: LatentDenoiser,
    linear: WienerFilter,
    videos: Callable[[], Iterator[Video]],
    samples: Path,
    seed: int,
    network: FeatureNetwork | None,
    seconds: float,
) -> LatentProbe:
    """Return the measures of a generator on unseen videos, and write some of them beside samples, as an MP4.

    Args:
        denoiser: The generator.
        linear: The linear denoiser of the training latents.
        videos: Returns the unseen videos, each `(1, C, T, H, W)` in [-1, 1].
        samples: The MP4.
        seed: Seed of the noise.
        network: The network of the Frechet distances. None: without them.
        seconds: Time of the training.
    """
    latents = [denoiser.normalised(denoiser.encode(video).mode()) for video in videos()]
    num_samples = len(latents) if network is not None else min(len(latents), NUM_SHOWN)
    sampled = denoiser.samples(num_samples, _SAMPLE_STEPS, seed)
    unseen_strip, unseen_features = _strip_and_features(videos(), network)
    recon_strip, recon_features = _strip_and_features(map(denoiser.decode, latents), network)
    sample_strip, sample_features = _strip_and_features(map(denoiser.decode, sampled), network)
    write_preview(samples, torch.cat([unseen_strip, recon_strip, sample_strip], dim=1), _FPS)
    features = {
        "unseen clips": unseen_features,
        "reconstructions": recon_features,
        "samples": sample_features,
    }
    frechet = {}
    if network is not None:
        for reference, name in combinations(features, 2):
            distance = math.nan
            if frechet_undefined(features[name], features[reference]) is None:
                distance = frechet_distance(features=features[name], reference=features[reference])
            frechet[f"{name} to {reference}"] = distance
    return LatentProbe(
        losses=velocity_losses(denoiser.velocity, latents, seed=seed),
        linear_losses=velocity_losses(linear.velocity, latents, seed=seed),
        patch=linear.patch,
        seconds=seconds,
        samples=f"{samples.parent.name}/{samples.name}",
        frechet=frechet,
    )


@torch.no_grad()
def features_of(videos: Iterable[Video], network: FeatureNetwork) -> Tensor:
    """Return the features of videos in [-1, 1], `(N, D)` on the CPU."""
    features = [network(as_rgb(video.clamp(*VALUE_RANGE))).cpu() for video in videos]
    return torch.cat(features) if features else torch.empty(0, 0)


@torch.no_grad()
def _strip_and_features(
    videos: Iterable[Video], network: FeatureNetwork | None
) -> tuple[Tensor, Tensor]:
    """Return the first videos beside each other, uint8 `(T, H, W, 3)`, and the features of all, on the CPU.

    Both at once, since videos are decoded one by one while they are iterated over.
    """
    shown: list[Tensor] = []
    features: list[Tensor] = []
    for video in videos:
        frames = as_rgb(video.clamp(*VALUE_RANGE))
        if len(shown) < NUM_SHOWN:
            shown.append(as_shown(bytes_from_video(frames[0])).cpu())
        if network is not None:
            features.append(network(frames).cpu())
    return torch.cat(shown, dim=2), torch.cat(features) if features else torch.empty(0, 0)
