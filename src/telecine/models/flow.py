"""Flow matching (arXiv:2210.02747) for decoders that generate: noise levels, noise, weights and sampling.

With a clean video `x` and normal noise `eps`, the noisy video of level `t` in (0, 1] is `x_t = (1 - t) x + t eps`. The
velocity is `eps - x`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import check_count, check_fraction
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, randn, seed_of
from telecine.base.shapes import Video
from telecine.settings.autoencoder import FlowConfig

Denoise: TypeAlias = Callable[[Video, Tensor], Video]
"""From `x_t` and its levels `(B,)` to a prediction of `x`."""
# Limits the weight of an error of the video, 1 / level^2, to 100.
_SMALLEST_LEVEL = 0.1


@dataclass(frozen=True)
class Sampler:
    """How a decoder that generates turns noise into video: by Euler's method, from level 1 to level 0.

    With a `level`, noise of that level is added to the latent instead, and the decoder removes it in one pass.

    The noise is a function of `seed` and of the frame's number and position alone. Neither the batch nor temporal
    chunks change it; the clips of a batch share it.
    """

    steps: int = 1  # passes of the decoder
    seed: int = 0
    first_frame: int = 0  # number of the clip's first frame in its video
    frame_size: tuple[int, int] | None = None  # of the frame that a decoded tile is part of; None for whole frames
    corner: tuple[int, int] = (0, 0)  # the tile's first row and column
    level: float | None = None  # of the noise in the latent, in [0, 1); None for a decoder that makes video of noise

    def __post_init__(self) -> None:
        check_count("decode_steps", self.steps, remedy="Use 1, 2 or 4.")
        if self.level is not None:
            check_fraction("decode_level", self.level, remedy="Use 0.05, or 0 for no noise.")

    def describe(self) -> dict[str, object]:
        """Return the name and the settings, for protocols."""
        of_kind = {"steps": self.steps} if self.level is None else {"level": self.level}
        return {"name": "euler" if self.level is None else "noise of the latent", **of_kind, "seed": self.seed}

    def of_latent(self, time: int, space: int) -> "Sampler":
        """Return the sampler of noise in a latent whose positions have `time` frames and `space` x `space` pixels."""
        size = self.frame_size and (self.frame_size[0] // space, self.frame_size[1] // space)
        corner = (self.corner[0] // space, self.corner[1] // space)
        return replace(self, first_frame=-(-self.first_frame // time), frame_size=size, corner=corner)

    def noise(self, shape: Sequence[int], device: torch.device) -> Video:
        """Return normal noise of `shape`, `(B, C, T, H, W)`: the same on every device."""
        num_clips, channels, num_frames, height, width = shape
        frame = (channels, *(self.frame_size or (height, width)))
        frames = range(self.first_frame, self.first_frame + num_frames)
        seeds = (seed_of(self.seed, "noise", number) for number in frames)
        drawn = torch.stack([torch.randn(frame, generator=torch.Generator().manual_seed(seed)) for seed in seeds], 1)
        top, left = self.corner
        return drawn[..., top : top + height, left : left + width].to(device).expand(num_clips, -1, -1, -1, -1)

    def levels(self, shift: float) -> list[float]:
        """Return the level before each step, from 1 on, evenly spaced before they are shifted."""
        return _shifted(torch.arange(self.steps, 0, -1).double() / self.steps, shift).tolist()


def _shifted(level: Tensor, shift: float) -> Tensor:
    return shift * level / (1 + (shift - 1) * level)


def random_levels(config: FlowConfig, video: Video, generator: Generators) -> Tensor:
    """Return a level for each clip of `(B, C, T, H, W)`, `(B,)` in float32: see `FlowConfig`."""
    normal = randn((len(video), 1), generator=generator, device=video.device)[:, 0]
    if config.one_step:
        return torch.ones_like(normal)
    return _shifted((config.level_mean + config.level_std * normal).sigmoid(), config.shift_of(*video.shape[-2:]))


def add_noise(video: Video, noise: Video, level: Tensor) -> Video:
    """Return `x_t` of videos `(B, C, T, H, W)` at levels `(B,)`."""
    t = level.view(-1, 1, 1, 1, 1)
    return (1 - t) * video + t * noise


def _level_weights(config: FlowConfig, level: Tensor) -> Tensor | None:
    """Return the weight of each clip's error `(B,)` at its level; None for 1."""
    return None if config.weighting == "uniform" else level.clamp(min=_SMALLEST_LEVEL) ** -2


def denoised_clips(
    config: FlowConfig, denoise: Denoise, video: Video, generator: Generators
) -> tuple[Video, Tensor | None, Video]:
    """Return what is made of videos with noise of random levels, the `_level_weights`, and the noise."""
    level = random_levels(config, video, generator)
    video = at_least_float32(video)
    noise = randn(video.shape, generator=generator, device=video.device, dtype=video.dtype)
    return denoise(add_noise(video, noise, level), level), _level_weights(config, level), noise


def integrate(denoise: Denoise, video: Video, levels: Sequence[float]) -> Video:
    """Return the video to which Euler's method takes noise `(B, C, T, H, W)`, from level to level and to 0.

    One step from level 1 returns the prediction of `denoise`.
    """
    for t, following in pairwise([*levels, 0.0]):
        x0 = denoise(video, torch.full((len(video),), t, device=video.device))
        eps = (video - (1 - t) * x0) / t
        video = x0 if following == 0 else (1 - following) * x0 + following * eps
    return video
