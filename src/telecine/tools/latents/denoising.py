"""How well noise is removed from latents, by a trained generator and by the best linear denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telecine.base.shapes import VALUE_RANGE, Video
from telecine.data import bytes_from_video
from telecine.evaluation.metrics.frechet import FeatureNetwork, features_of, frechet_or_nan
from telecine.losses.perceptual import as_rgb
from telecine.report.clips import write_preview
from telecine.tools.latents.wiener import WienerFilter
from telecine.video.frames import as_shown

if TYPE_CHECKING:
    from telecine.models.diffusers.denoiser import LatentDenoiser

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the noise
NUM_SHOWN = 6  # clips beside each other in the video of samples
_SAMPLE_STEPS = 50
_FPS = 8.0


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

    def table_values(self) -> dict[str, float]:
        """Return the values of a line of a table."""
        values = {
            "probe: velocity loss": sum(self.losses) / len(self.losses),
            "probe: share of the linear loss": sum(self.losses) / sum(self.linear_losses),
            "probe: seconds": self.seconds,
        }
        for pair, distance in self.frechet.items():
            values[f"probe: Frechet distance, {pair}"] = distance
        return values


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


@torch.no_grad()
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
    sets: dict[str, Iterator[Video]] = {
        "unseen clips": videos(),
        "reconstructions": map(denoiser.decode, latents),
        "samples": map(denoiser.decode, sampled),
    }
    strips = []
    features = {}
    for name, clips in sets.items():
        first = list(islice(clips, NUM_SHOWN))
        strips.append(_beside_each_other(first))
        if network is not None:
            features[name] = features_of(chain(first, clips), network)
    write_preview(samples, torch.cat(strips, dim=1), _FPS)
    frechet = {}
    for reference, name in combinations(features, 2):
        frechet[f"{name} to {reference}"] = frechet_or_nan(
            features=features[name], reference=features[reference]
        )
    return LatentProbe(
        losses=velocity_losses(denoiser.velocity, latents, seed=seed),
        linear_losses=velocity_losses(linear.velocity, latents, seed=seed),
        patch=linear.patch,
        seconds=seconds,
        samples=f"{samples.parent.name}/{samples.name}",
        frechet=frechet,
    )


def _beside_each_other(videos: Sequence[Video]) -> Tensor:
    """Return videos `(1, C, T, H, W)` beside each other, uint8 `(T, H, N * W, 3)` on the CPU."""
    shown = []
    for video in videos:
        frames = as_rgb(video.clamp(*VALUE_RANGE))
        shown.append(as_shown(bytes_from_video(frames[0])).cpu())
    return torch.cat(shown, dim=2)
