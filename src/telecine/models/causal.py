"""telecine's own autoencoder: a causal 3D VAE that starts from the best linear one and learns the residual."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from functools import partial
from os import PathLike
from pathlib import Path

import torch
from typing_extensions import Self

from telecine.base.checks import argument_error
from telecine.base.files import read_json
from telecine.base.precision import call_with_cast_weights
from telecine.base.shapes import Video
from telecine.models.bottleneck import Bottleneck, build_bottleneck
from telecine.models.causal_autoencoder import CausalAutoencoder
from telecine.models.causal_blocks import (
    FrameCache,
)
from telecine.models.causal_networks import Encoder
from telecine.models.channels import change_channels
from telecine.models.clip_sizes import check_multiple
from telecine.models.interface import VideoAutoencoder, check_input
from telecine.models.latent import (
    MEAN_KEY,
    STD_KEY,
    DiagonalGaussian,
    LatentStatistics,
    Normalisation,
    Posterior,
)
from telecine.models.linear import LatentFit, LinearAutoencoder
from telecine.models.lora import merge_low_rank
from telecine.models.pretrained import (
    CONFIG_FILE,
    check_num_weights,
    load_config,
    load_weights,
    save_model,
)
from telecine.models.row_split import RowNetwork, RowSplit
from telecine.models.stream import ChunkSizes, StreamEncoder
from telecine.settings import CausalVAEConfig
from telecine.settings.errors import validate
from telecine.settings.upgrade import upgrade_autoencoder

# Key and value in `config.json`. The first version wrote none: its models have other layers.
_ARCHITECTURE_KEY = "_architecture"
_ARCHITECTURE = 2


class CausalVAE(CausalAutoencoder):
    """A causal 3D VAE (arXiv:1312.6114) that encodes the first frame separately, as MAGVIT-v2 does (arXiv:2310.05737).

    Video `(B, C, 1 + t*k, s*h, s*w)` in [-1, 1] has a latent `(B, latent_channels, 1 + k, h, w)`, with `t` the time and
    `s` the spatial compression. An image is a video of one frame. Latent frame `i` depends on input frames up to `t*i`,
    output frame `j` on latent frames up to `ceil(j / t)`. The output has no activation and is not clamped. The clips of
    a batch are independent. Without `first_frame_apart`, each of `k` latent frames belongs to `t` of `t*k` frames.

    Encoder and decoder are each a linear map of patches plus a residual network, whose last layer is 0 at the start.
    After `start_from`, the model is the best linear autoencoder of its latent, whose channels have unit variance, and
    training improves on that. The auxiliary losses are `{"kl_loss": the posterior's moments}`, or those of the
    discrete bottleneck. The networks work on patches of latent frames, and halve height and width as `Downsample`.

    Args:
        config: The architecture. The default is meant for a GPU and clips of 17 x 256 x 256.
    """

    def __init__(self, config: CausalVAEConfig | None = None) -> None:
        super().__init__()
        if config is None:
            config = CausalVAEConfig()
        self.encoder = Encoder(config)
        self.set_decoder(config)
        self.bottleneck = build_bottleneck(self.config)
        self.latent_statistics: LatentStatistics | None = None

    def row_split(self) -> RowSplit:
        """Return how several processes share a clip: encoder and decoder compute rows."""
        split = super().row_split()
        encoder = RowNetwork(self.encoder, split.spatial_compression)
        return replace(split, networks={"encoder": encoder, **split.networks})

    def encode(self, video: Video) -> Posterior:
        """Return the posterior of `(B, C, T, H, W)`, in float32 at least: of the quantized latent if it is discrete."""
        check_input(self, video)
        return self._posterior(video)

    def _posterior(
        self, video: Video, cache: FrameCache | None = None, first_chunk: bool = True
    ) -> Posterior:
        video = video.to(self.last_layer.dtype)
        mean, logvar = call_with_cast_weights(self.encoder, video, cache, first_chunk)
        if self.bottleneck is None:
            return DiagonalGaussian(mean=mean, logvar=logvar)
        return self.bottleneck.posterior(mean)

    def stream_encoder(self, num_frames: int | None = None) -> StreamEncoder:
        """Return a stream that encodes a video a few frames at a time; see `VideoAutoencoder.stream_encoder`."""
        first = int(self.config.first_frame_apart)
        sizes = ChunkSizes(
            first=first or self._time,
            others=self._chunk_frames(num_frames),
            multiple=self._time,
            offset=first,
        )
        return StreamEncoder(partial(self._encode_chunk, {}), sizes)

    def _encode_chunk(self, cache: FrameCache, video: Video, num_before: int) -> Posterior:
        if num_before == 0:
            check_input(self, video)
        return self._posterior(video, cache, first_chunk=num_before == 0)

    @property
    def codebook(self) -> Bottleneck | None:
        """The discrete bottleneck, if the model has one."""
        return self.bottleneck

    def copy_linear(self, linear: LinearAutoencoder) -> None:
        """Copy a fitted `linear_autoencoder`, which the model equals until it is trained."""
        self.encoder.linear.load_state_dict(linear.encoder.state_dict())
        self.decoder.linear.load_state_dict(linear.decoder.state_dict())

    @torch.no_grad()
    def fit_linear_to_teacher(self, teacher: VideoAutoencoder, videos: Iterable[Video]) -> None:
        """Set the linear maps to the best ones between videos and the latents of a teacher.

        Args:
            teacher: The teacher, on the device of this model.
            videos: Clips `(B, C, T, H, W)`.
        """
        device = self.last_layer.device
        fit = LatentFit(self.decoder.linear, self.encoder.linear)
        for video in videos:
            latent = teacher.encode(video.to(device)).mode()
            fit.add(latent, video)
        fit.solve()

    def with_channels(self, in_channels: int) -> CausalVAE:
        """Return this model for other channels; see `change_channels`."""
        model = CausalVAE(replace(self.config, in_channels=in_channels))
        change_channels(
            self.state_dict(),
            model,
            self.in_channels,
            in_channels,
            has_patches=True,
            opaque="linear",
        )
        model.latent_statistics = self.latent_statistics
        return model

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Check that the model reproduces clips of this size.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: It does not; the message has the nearest accepted value.
        """
        space = self.config.spatial_compression
        first = int(self.config.first_frame_apart)
        check_multiple("num_frames", num_frames, step=self.config.time_compression, offset=first)
        check_multiple("height", height, step=space)
        check_multiple("width", width, step=space)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest accepted (frames, height, width) that is at least this large.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.
        """
        first = int(self.config.first_frame_apart)
        frames = first + _round_up(num_frames - first, self.config.time_compression)
        space = self.config.spatial_compression
        return frames, _round_up(height, space), _round_up(width, space)

    def latent_normalisation(self) -> Normalisation:
        """Return `latents_mean` and `latents_std`, by which `(z - mean) / std` is normalised; None before training."""
        if self.latent_statistics is None:
            return {MEAN_KEY: None, STD_KEY: None}
        return {MEAN_KEY: self.latent_statistics.mean, STD_KEY: self.latent_statistics.std}

    def set_latent_statistics(self, statistics: LatentStatistics) -> None:
        """Replace the numbers that `latent_normalisation` returns."""
        self.latent_statistics = statistics

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` atomically, LoRA adapters merged into the weights."""
        config = {
            _ARCHITECTURE_KEY: _ARCHITECTURE,
            **self.config.saved_values(),
            **self.latent_normalisation(),
        }
        save_model(merge_low_rank(self), config, folder)

    def load_weights(self, folder: str | PathLike[str]) -> Self:
        """Copy the weights that `save_pretrained` wrote into this model, and return it.

        Raises:
            FileNotFoundError: There are none.
            ValueError: They are damaged or not the model's, or an older version wrote them.
        """
        read_causal_config(folder)
        load_weights(self, folder)
        return self

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str], *, with_weights: bool = True
    ) -> CausalVAE:
        """Return the model that `save_pretrained` wrote, on the CPU, in float32 and training mode.

        Args:
            folder: Where it was saved.
            with_weights: Whether it has the saved weights. Otherwise only its configuration is read.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: The configuration is invalid, the weights do not match it, or an older version wrote them.
        """
        config = read_causal_config(folder)
        if not with_weights:
            return cls.from_config(config, str(folder))
        check_num_weights(lambda: cls(config), str(folder), folder)
        model = cls(config)
        saved = read_json(Path(folder) / CONFIG_FILE)
        mean = saved.get(MEAN_KEY)
        std = saved.get(STD_KEY)
        if mean is not None and std is not None:
            model.latent_statistics = LatentStatistics(mean, std)
        load_weights(model, folder)
        return model

    @classmethod
    def from_config(cls, config: CausalVAEConfig, source: str) -> CausalVAE:
        """Return a model with random weights, after a check that they fit into memory.

        Args:
            config: Its settings.
            source: Where they are from, for errors.

        Raises:
            ValueError: The model is too large.
        """
        check_num_weights(lambda: cls(config), source)
        return cls(config)


def read_causal_config(folder: str | PathLike[str]) -> CausalVAEConfig:
    """Return the configuration in a model's folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: Another class or an older version wrote it, or a setting is wrong.
    """
    settings = [field.name for field in fields(CausalVAEConfig)]
    values = load_config(
        folder, CausalVAE.__name__, [_ARCHITECTURE_KEY, MEAN_KEY, STD_KEY, *settings]
    )
    architecture = values.pop(_ARCHITECTURE_KEY, 1)
    if architecture != _ARCHITECTURE:
        contract = f"a CausalVAE with `{_ARCHITECTURE_KEY}` {_ARCHITECTURE}"
        remedy = "Its layers differ: train it again, or use that version."
        raise argument_error("folder", contract, f"{architecture}, of an older version", remedy)
    values.pop(MEAN_KEY, None)
    values.pop(STD_KEY, None)
    return validate(CausalVAEConfig, upgrade_autoencoder(values))


def _round_up(value: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `value`."""
    return step * -(-value // step)
