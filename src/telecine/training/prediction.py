"""Predictive reconstruction (PV-VAE, arXiv:2605.02134): the encoder sees the first frames, the decoder makes all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.randomness import Generators, numbers_for_batch
from telecine.base.shapes import Video
from telecine.losses import AuxLosses
from telecine.models import LatentAutoencoder, Posterior, VideoAutoencoder
from telecine.models.latent import LatentGrid
from telecine.models.unwrapping import class_name
from telecine.settings import Bucket, PredictiveConfig


class Fill(nn.Module):
    """The vector that stands in the place of a dropped latent frame, at each position: trained, and 0 at the start."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(num_channels))


@dataclass(frozen=True)
class Prediction:
    """Encodes the first frames of clips, for an update that decodes all of them."""

    lengths: Mapping[tuple[int, ...], Sequence[int]]
    """By the frames, height and width of a clip: how many frames are encoded if 0, 1, ... latent frames are dropped."""
    fill: Fill | None
    """The vector in place of dropped latent frames; None if they are 0."""

    def encode(
        self, autoencoder: VideoAutoencoder, video: Video, generator: Generators
    ) -> Posterior:
        """Return the posterior of clips whose last latent frames are filled up; all clips lose equally many.

        Args:
            autoencoder: The autoencoder.
            video: `(B, C, T, H, W)`.
            generator: Of the number of dropped frames: one, or one for each clip.
        """
        num_frames = video.shape[2]
        lengths = self.lengths.get(tuple(video.shape[2:]), [num_frames])  # images lose nothing
        (drawn,) = numbers_for_batch("predictive", count=1, generator=generator)
        num_dropped = math.floor(drawn * len(lengths))
        posterior = autoencoder.encode(video[:, :, : lengths[num_dropped]])
        if num_dropped == 0:
            return posterior
        return FilledPosterior(posterior, num_dropped, self.fill)


class FilledPosterior:
    """The posterior of the first latent frames, with constant ones after them.

    Args:
        first: The posterior of the first latent frames.
        num_dropped: The number of latent frames after them.
        fill: Their value at each position; None for 0.
    """

    def __init__(self, first: Posterior, num_dropped: int, fill: Fill | None) -> None:
        self.first = first
        self.num_dropped = num_dropped
        self.fill = fill

    def sample(self, generator: Generators = None) -> Tensor:
        """Return a sample of the first latent frames, filled up; `generator` is one, or one for each clip."""
        return self._filled(self.first.sample(generator))

    def mode(self) -> Tensor:
        """Return the most likely first latent frames, filled up."""
        return self._filled(self.first.mode())

    def aux(self) -> AuxLosses:
        """Return the auxiliary losses of the first latent frames."""
        return self.first.aux()

    def _filled(self, latent: Tensor) -> Tensor:
        batch, channels, _, height, width = latent.shape
        shape = (batch, channels, self.num_dropped, height, width)
        if self.fill is None:
            return torch.cat([latent, latent.new_zeros(shape)], dim=2)
        vector = self.fill.vector.to(latent)
        return torch.cat([latent, vector.view(1, -1, 1, 1, 1).expand(shape)], dim=2)


def kept_frames(grid: LatentGrid, num_frames: int, max_dropped: float) -> list[int]:
    """Return how many frames are encoded if 0, 1, ... latent frames are dropped. The first one is always kept.

    Args:
        grid: How the latent divides clips.
        num_frames: Frames of a clip.
        max_dropped: See `PredictiveConfig`.
    """
    if grid.first_frame_apart:
        num_others = (num_frames - 1) // grid.time_compression
    else:
        num_others = num_frames // grid.time_compression - 1
    num_droppable = math.floor(num_others * max_dropped)
    return [num_frames - number * grid.time_compression for number in range(num_droppable + 1)]


def build_prediction(
    config: PredictiveConfig, model: VideoAutoencoder, buckets: Sequence[Bucket]
) -> Prediction | None:
    """Return how frames are hidden from the encoder; None if none are.

    Args:
        config: The settings.
        model: The autoencoder.
        buckets: The sizes of clips.

    Raises:
        ValueError: The model does not encode and decode a latent, does not accept the shorter clips, or all clips are
            too short for a frame to be dropped.
    """
    if config.max_dropped == 0:
        return None
    if not isinstance(model, LatentAutoencoder) or model.trains_on_latents:
        contract = "0 for a module that does not encode and decode a latent"
        got = f"{config.max_dropped} for {class_name(model)}"
        raise argument_error("predictive.max_dropped", contract, got, "Leave it out.")
    lengths: dict[tuple[int, ...], list[int]] = {}
    num_channels = 0
    for bucket in buckets:
        grid = model.latent_grid(*bucket.shape)
        if grid is None:
            contract = "0 for a latent whose frames do not divide the clip's evenly"
            got = str(config.max_dropped)
            raise argument_error("predictive.max_dropped", contract, got, "Leave it out.")
        num_channels = grid.latent_channels
        lengths[bucket.shape] = kept_frames(grid, bucket.num_frames, config.max_dropped)
        for num_frames in lengths[bucket.shape]:
            model.check_clip(num_frames, bucket.height, bucket.width)
    if all(len(numbers) == 1 for numbers in lengths.values()):
        contract = "large enough to drop a latent frame"
        remedy = "Raise it, or use longer clips."
        raise argument_error("predictive.max_dropped", contract, config.max_dropped, remedy)
    fill = Fill(num_channels) if config.fill == "learned" else None
    return Prediction(lengths, fill)
