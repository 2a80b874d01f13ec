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
from telecine.evaluation.frechet import FeatureNetwork, frechet_distance
from telecine.evaluation.measure import frechet_undefined
from telecine.losses.perceptual import as_rgb
from telecine.report.clips import write_preview
from telecine.report.video import as_shown

if TYPE_CHECKING:
    from telecine.models.diffusers.denoiser import LatentDenoiser

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the noise
NUM_SHOWN = 6
_SAMPLE_STEPS = 50
_FPS = 8.0
# Patches for each of their values from which a covariance is estimated, at least: the filter of white noise then leaves
# at most 2 % more than the best one.
_ROWS_PER_VALUE = 32
_MAX_VALUES = 1024


@dataclass(frozen=True)
class LatentProbe:
    """The measures of a generator of one model's latents."""

    losses: list[float]  # mean squared error of the velocity at each of `LEVELS`, on unseen videos
    linear_losses: list[float]  # the same of the best linear denoiser of the training latents
    patch: tuple[int, int, int]  # frames, height and width of its patches
    seconds: float  # of the training
    samples: str  # path, from the page, of the video of unseen clips, reconstructions and samples, from top to bottom
    frechet: dict[str, float] = field(default_factory=dict)
    """Frechet distances, by the names of the two sets; NaN if features of one are not finite."""

    def shares(self) -> list[float]:
        """Return the loss at each level as a share of the linear denoiser's."""
        return [loss / linear for loss, linear in zip(self.losses, self.linear_losses, strict=True)]

    def figures(self) -> dict[str, float]:
        """Return the figures of a line of a table."""
        return {
            "probe: velocity loss": sum(self.losses) / len(self.losses),
            "probe: share of the linear loss": sum(self.losses) / sum(self.linear_losses),
            "probe: seconds": self.seconds,
            **{f"probe: Frechet distance, {pair}": value for pair, value in self.frechet.items()},
        }


@torch.no_grad()
def _velocity_losses(field: Callable[[Tensor, float], Tensor], latents: Iterable[Tensor], *, seed: int) -> list[float]:
    """Return the mean squared error of the velocity at each of `LEVELS`.

    `field` maps noisy latents `(B, C, t, h, w)` and their level to the velocity. `latents` are batches of normalised
    ones. The noise depends on the seed and on their shapes alone: predictions compare on the same noisy latents.
    """
    generator = torch.Generator().manual_seed(seed)
    sums, count = [0.0] * len(LEVELS), 0
    for latent in latents:
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        for index, level in enumerate(LEVELS):
            predicted = field((1 - level) * latent + level * noise, level)
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

    patch: tuple[int, int, int]  # frames, height and width of a patch
    mean: Tensor  # of a patch, `(D,)` in float64
    eigenvalues: Tensor  # of the covariance, `(D,)`
    eigenvectors: Tensor  # its columns, `(D, D)`

    @classmethod
    def fit(cls, latents: Tensor, patch: tuple[int, int, int] | None = None) -> WienerFilter:
        """Return the filter of latents `(N, C, t, h, w)` for patches anywhere in them.

        By default patches are as large as the number of latents allows. A `ValueError` is raised if there are too few
        for patches of one position.
        """
        patch = patch or _largest_patch(latents)
        rows = _rows(latents, patch).cpu().double()
        eigenvalues, eigenvectors = torch.linalg.eigh(rows.T.cov(correction=0))
        return cls(patch, rows.mean(0), eigenvalues.clamp(min=0), eigenvectors)

    def velocity(self, noisy: Tensor, level: float) -> Tensor:
        """Return the predicted velocity of noisy latents `(N, C, t, h, w)` at a level in (0, 1]."""
        gain = (1 - level) * self.eigenvalues / ((1 - level) ** 2 * self.eigenvalues + level**2)
        rows = _rows(noisy, self.patch).cpu().double()
        clean = self.mean + (rows - (1 - level) * self.mean) @ (self.eigenvectors * gain) @ self.eigenvectors.T
        sizes = dict(zip("pqr", self.patch, strict=True))
        counts = {name: side // part for name, side, part in zip("thw", noisy.shape[2:], self.patch, strict=True)}
        pattern = "(b t h w) (c p q r) -> b c (t p) (h q) (w r)"
        return rearrange((rows - clean) / level, pattern, **sizes, **counts).to(noisy)


def _rows(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    p, q, r = patch
    return rearrange(latents, "b c (t p) (h q) (w r) -> (b t h w) (c p q r)", p=p, q=q, r=r)


def _largest_patch(latents: Tensor) -> tuple[int, int, int]:
    """Return the frames, height and width of the largest patches whose covariance the latents determine."""
    channels, *size = latents.shape[1:]
    num_positions = min(_MAX_VALUES, math.isqrt(latents.numel() // _ROWS_PER_VALUE)) // channels
    if num_positions == 0:
        contract = f"at least {_ROWS_PER_VALUE * channels} positions for {channels} channels"
        raise argument_error("latents", contract, latents, "Use more clips.")
    divisors = ([part for part in range(1, side + 1) if side % part == 0] for side in size)
    known = [(p, q, r) for p, q, r in product(*divisors) if p * q * r <= num_positions]
    return max(known, key=lambda patch: (math.prod(patch), -sum(patch)))  # of the same size the most compact


def measure_denoiser(
    denoiser: LatentDenoiser,
    linear: WienerFilter,
    videos: Callable[[], Iterator[Video]],
    samples: Path,
    seed: int,
    network: FeatureNetwork | None,
    seconds: float,
) -> LatentProbe:
    """Return the measures on unseen videos `(1, C, T, H, W)`, and write some beside samples, as an MP4.

    `network` is that of the Frechet distances; `seconds` is the time of the training.
    """
    latents = [denoiser.normalised(denoiser.encode(video).mode()) for video in videos()]
    num_samples = len(latents) if network else min(len(latents), NUM_SHOWN)
    sets = {
        "unseen clips": videos(),
        "reconstructions": map(denoiser.decode, latents),
        "samples": map(denoiser.decode, denoiser.samples(num_samples, _SAMPLE_STEPS, seed)),
    }
    rows, all_features = zip(*(row_and_features(each, network) for each in sets.values()), strict=True)
    write_preview(samples, torch.cat(rows, dim=1), _FPS)
    pairs = combinations(zip(sets, all_features, strict=True) if network else (), 2)
    return LatentProbe(
        losses=_velocity_losses(denoiser.velocity, latents, seed=seed),
        linear_losses=_velocity_losses(linear.velocity, latents, seed=seed),
        patch=linear.patch,
        seconds=seconds,
        samples=f"{samples.parent.name}/{samples.name}",
        frechet={
            f"{b} to {a}": math.nan if frechet_undefined(y, x) else frechet_distance(features=y, reference=x)
            for (a, x), (b, y) in pairs
        },
    )


@torch.no_grad()
def row_and_features(videos: Iterable[Video], network: FeatureNetwork | None) -> tuple[Tensor, Tensor]:
    """Return the first videos beside each other, uint8 `(T, H, W, 3)`, and the features of all, on the CPU."""
    shown: list[Tensor] = []
    features = [torch.empty(0, 0)]
    for video in videos:
        frames = as_rgb(video.clamp(*VALUE_RANGE))
        if len(shown) < NUM_SHOWN:
            shown.append(as_shown(bytes_from_video(frames[0])).cpu())
        if network is not None:
            features.append(network(frames).cpu())
    return torch.cat(shown, dim=2), torch.cat(features[1:] or features)
