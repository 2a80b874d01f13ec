"""Flow matching (arXiv:2210.02747) for decoders that generate: noise levels, noise, weights and sampling.

With a clean video `x` and normal noise `eps`, the noisy video of level `t` in (0, 1] is `x_t = (1 - t) x + t eps`. The
velocity is `eps - x`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from telecine.base.checks import check_count, check_fraction
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, rand, randn, seed_of
from telecine.base.shapes import Video
from telecine.ops.pass_options import ClipPosition
from telecine.settings.autoencoder import FlowConfig

Predictor: TypeAlias = Callable[[Video, Tensor], Video]
"""From `x_t` and its levels `(B,)` to a prediction of `x`."""
FEW_STEPS: dict[str, dict[str, Any]] = {"4_steps": {"steps": 4}}
"""How validations sample a decoder that generates, in addition to one step; see `validation_decodings`."""
# Limits the weight of an error of the video, 1 / level^2, to 100.
_SMALLEST_LEVEL = 0.1


@dataclass(frozen=True, kw_only=True)
class DecodingNoise(ABC):
    """The noise of a decoder outside of training, and what the decoder does with it.

    The noise is a function of `seed` and of the position in the video alone. Neither the batch nor temporal chunks
    change it; the clips of a batch share it.
    """

    seed: int = 0
    """Seed of the noise."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return the name and the settings, for protocols."""

    def noise(self, shape: Sequence[int], position: ClipPosition, device: torch.device) -> Video:
        """Return normal noise, which is the same on every device.

        Args:
            shape: `(B, C, T, H, W)` of a clip or a tile.
            position: Where it lies in its video.
            device: Where the noise is returned; it is drawn on the CPU.
        """
        num_clips, channels, num_frames, height, width = shape
        frame_height, frame_width = position.frame_size or (height, width)
        frames = []
        for number in range(position.first_frame, position.first_frame + num_frames):
            generator = torch.Generator().manual_seed(seed_of(self.seed, "noise", number))
            frames.append(torch.randn((channels, frame_height, frame_width), generator=generator))
        top, left = position.corner
        tile = torch.stack(frames, dim=1)[..., top : top + height, left : left + width]
        return tile.to(device).expand(num_clips, -1, -1, -1, -1)


@dataclass(frozen=True, kw_only=True)
class EulerSampler(DecodingNoise):
    """How a decoder that generates turns noise into video: by Euler's method, from level 1 to level 0.

    Raises:
        ValueError: `steps` is not a positive number.
    """

    steps: int = 1
    """Passes of the decoder."""

    def __post_init__(self) -> None:
        check_count("decode_steps", self.steps, remedy="Use 1, 2 or 4.")

    def describe(self) -> dict[str, object]:
        """Return the name, the steps and the seed."""
        return {"name": "euler", "steps": self.steps, "seed": self.seed}

    def levels(self, shift: float) -> list[float]:
        """Return the level before each step, from 1 on, evenly spaced before they are shifted."""
        return _shifted(torch.arange(self.steps, 0, -1).double() / self.steps, shift).tolist()


@dataclass(frozen=True, kw_only=True)
class LatentNoise(DecodingNoise):
    """Noise that is added to the latent of a decoder that removes it in one pass.

    Raises:
        ValueError: `level` is not in [0, 1).
    """

    level: float = 0.0
    """Level of the noise, in [0, 1)."""

    def __post_init__(self) -> None:
        check_fraction("decode_level", self.level, remedy="Use 0.05, or 0 for no noise.")

    def describe(self) -> dict[str, object]:
        """Return the name, the level and the seed."""
        return {"name": "noise of the latent", "level": self.level, "seed": self.seed}


def _shifted(noise_level: Tensor, shift: float) -> Tensor:
    return shift * noise_level / (1 + (shift - 1) * noise_level)


def random_levels(config: FlowConfig, video: Video, generator: Generators) -> Tensor:
    """Return a random level for each clip, `(B,)` in float32: see `FlowConfig`.

    Args:
        config: The distribution of levels.
        video: `(B, C, T, H, W)`, of which the number of clips, the size and the device are used.
        generator: One generator, or one for each clip; PyTorch's default generator if None.
    """
    normal = randn((len(video), 1), generator=generator, device=video.device)[:, 0]
    if config.one_step:
        return torch.ones_like(normal)
    noise_level = (config.level_mean + config.level_std * normal).sigmoid()
    noise_level = _shifted(noise_level, config.shift_of(*video.shape[-2:]))
    if config.noise_fraction > 0:
        draw = rand((len(video), 1), generator=generator, device=video.device)[:, 0]
        noise_level = torch.where(
            draw < config.noise_fraction, torch.ones_like(noise_level), noise_level
        )
    return noise_level


def add_noise(video: Video, noise: Video, noise_level: Tensor) -> Video:
    """Return the noisy videos `x_t`.

    Args:
        video: The clean ones, `(B, C, T, H, W)`.
        noise: Normal noise of the same shape.
        noise_level: Levels `t`, `(B,)`.
    """
    t = noise_level.view(-1, 1, 1, 1, 1)
    return (1 - t) * video + t * noise


def level_weights(config: FlowConfig, noise_level: Tensor) -> Tensor | None:
    """Return the weight of each clip's error `(B,)` at its level; None for 1."""
    if config.weighting == "uniform":
        return None
    return noise_level.clamp(min=_SMALLEST_LEVEL) ** -2


class DenoisedClips(NamedTuple):
    """Clips to which noise was added and from which a decoder removed it."""

    video: Video
    """The prediction of the clean video."""
    weight: Tensor | None
    """The weight of each clip's error, see `level_weights`."""
    noise: Video
    """The noise that was added."""


def denoise_at_random_levels(
    config: FlowConfig, predict: Predictor, video: Video, generator: Generators
) -> DenoisedClips:
    """Add noise of random levels to videos and remove it, for one update.

    Args:
        config: The levels and the weights of errors.
        predict: The decoder, as a function of the noisy video and its levels.
        video: `(B, C, T, H, W)` in [-1, 1].
        generator: One generator, or one for each clip; PyTorch's default generator if None.
    """
    noise_level = random_levels(config, video, generator)
    video = at_least_float32(video)
    noise = randn(video.shape, generator=generator, device=video.device, dtype=video.dtype)
    predicted = predict(add_noise(video, noise, noise_level), noise_level)
    return DenoisedClips(predicted, level_weights(config, noise_level), noise)


def integrate(predict: Predictor, video: Video, levels: Sequence[float]) -> Video:
    """Return the video to which Euler's method takes noise, from level to level and to 0.

    One step from level 1 returns the prediction.

    Args:
        predict: From a noisy video and its levels `(B,)` to a prediction of the clean video.
        video: Noise, `(B, C, T, H, W)`.
        levels: The level before each step, falling.
    """
    for t, following in pairwise([*levels, 0.0]):
        x0 = predict(video, torch.full((len(video),), t, device=video.device))
        if following == 0:
            video = x0
        else:
            eps = (video - (1 - t) * x0) / t
            video = (1 - following) * x0 + following * eps
    return video
