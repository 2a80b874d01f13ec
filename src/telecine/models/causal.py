"""telecine's own autoencoder: a causal 3D VAE that starts from the best linear one and learns the residual."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from telecine.base.checks import argument_error, check_count
from telecine.base.files import read_json
from telecine.base.precision import call_with_cast_weights
from telecine.base.randomness import Generators
from telecine.base.shapes import RGBA, Video, check_video
from telecine.models.bottleneck import Bottleneck, build_bottleneck
from telecine.models.causal_blocks import (
    CausalConv,
    CausalSequential,
    ChannelNorm,
    Downsample,
    EarlierFrames,
    ResidualBlock,
    Upsample,
    call_layer,
    fold,
    init_zero,
    unfold,
)
from telecine.models.channels import RGBAConv3d, change_channels
from telecine.models.clip_sizes import check_multiple
from telecine.models.flow import FEW_STEPS, DenoisedClips, Sampler, denoised_clips, integrate
from telecine.models.interface import ClipPosition, Reconstruction, check_input, clip_position
from telecine.models.latent import (
    MEAN_KEY,
    STD_KEY,
    DiagonalGaussian,
    LatentGrid,
    LatentStatistics,
    Normalisation,
    Posterior,
)
from telecine.models.latent_autoencoder import LatentAutoencoder
from telecine.models.linear import LinearAutoencoder, PatchDecoder, PatchEncoder
from telecine.models.lora import merge_low_rank
from telecine.models.pretrained import (
    CONFIG_FILE,
    check_num_weights,
    load_config,
    load_weights,
    save_model,
)
from telecine.models.stream import ChunkSizes, StreamDecoder, StreamEncoder
from telecine.ops.checkpointing import checkpoint_call
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import with_older_flow
from telecine.settings.validate import validate

# The initial standard deviation of the posterior is exp(-3) = 0.05, that of the means 1. With more noise, the decoder
# learns to ignore the latent for the first few hundred steps.
_INITIAL_LOGVAR = -6.0
# Key and value in `config.json`. The first version wrote none: its models have other layers.
_ARCHITECTURE_KEY = "_architecture"
_ARCHITECTURE = 2
# Size of the embedding of a noise level, and the longest period of its sines, as in DDPM (arXiv:2006.11239).
_NOISE_FEATURES = 128
_LONGEST_PERIOD = 10_000


def _residual_blocks(
    config: CausalVAEConfig, stage: int, noise_features: int = 0
) -> list[nn.Module]:
    """Return the blocks of a stage, 0 at the highest resolution; those at the lowest one see earlier frames."""
    is_lowest = stage == len(config.channels) - 1
    time_kernel = config.time_kernel if is_lowest else 1
    return [
        ResidualBlock(config.channels[stage], time_kernel, noise_features)
        for _ in range(config.blocks_per_level)
    ]


def _in_temporal_chunks(network: Callable[..., Video], size: int, *videos: Video) -> Video:
    """Return `network(*videos)`; for a `size` above 0, in chunks of `size` frames that the backward recomputes."""
    if size == 0:
        return network(*videos)
    earlier: EarlierFrames = {}
    chunks = zip(*(video.split(size, dim=2) for video in videos), strict=True)
    return torch.cat([checkpoint_call(network, *chunk, earlier) for chunk in chunks], dim=2)


class Encoder(nn.Module):
    """From video to the posterior's mean and logvar: a linear map of patches, and a network that is 0 at the start."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        self.patch = (config.time_compression, config.patch_size)
        self.first_frame_apart = config.first_frame_apart
        self.linear = PatchEncoder(
            config.time_compression,
            config.spatial_compression,
            config.latent_channels,
            config.in_channels,
            config.first_frame_apart,
        )
        self.latent_channels = config.latent_channels
        has_logvar = config.bottleneck == "gaussian"
        num_outputs = 2 * self.latent_channels if has_logvar else self.latent_channels
        lowest_channels = config.channels[-1]

        conv = RGBAConv3d if config.in_channels == RGBA else nn.Conv3d
        layers: list[nn.Module] = [
            CausalConv(config.folded_channels, config.channels[0], (1, 3), conv)
        ]
        for stage, (outer, inner) in enumerate(config.halvings()):
            layers.extend(_residual_blocks(config, stage))
            layers.append(Downsample(outer, inner))
        layers.extend(_residual_blocks(config, len(config.channels) - 1))
        layers.append(ChannelNorm(lowest_channels))
        layers.append(nn.SiLU())
        last = init_zero(CausalConv(lowest_channels, num_outputs, (1, 1)))
        if has_logvar:
            nn.init.constant_(last.conv.bias[self.latent_channels :], _INITIAL_LOGVAR)  # type: ignore[index]
        layers.append(last)
        self.network = CausalSequential(*layers)
        self.chunk_size = 0  # latent frames; 0 for whole clips

    def forward(
        self, video: Video, earlier: EarlierFrames | None = None, continues: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return mean and logvar, `(B, latent_channels, k, h, w)`; logvar is empty with a discrete bottleneck.

        Args:
            video: A whole clip, or a chunk of a stream, `(B, C, T, H, W)`.
            earlier: The frames that layers keep between the chunks of a stream; None for a whole clip.
            continues: Whether the chunk follows another one.
        """
        folded = fold(video, *self.patch, self.first_frame_apart and not continues)
        if earlier is None:
            outputs = _in_temporal_chunks(self.network, self.chunk_size, folded)
        else:
            outputs = self.network(folded, earlier)
        residual, logvar = outputs.tensor_split([self.latent_channels], dim=1)
        return self.linear(video, continues=continues) + residual, logvar


class Decoder(nn.Module):
    """From a latent to video: a linear map to patches, and a network that is 0 at the start.

    Args:
        config: The architecture.
        noise_features: Size of the embedding of the noise level, which the norms take; 0 for a decoder without noise.
    """

    def __init__(self, config: CausalVAEConfig, noise_features: int = 0) -> None:
        super().__init__()
        self.patch = (config.time_compression, config.patch_size)
        self.first_frame_apart = config.first_frame_apart
        self.linear = PatchDecoder(
            config.time_compression,
            config.spatial_compression,
            config.latent_channels,
            config.in_channels,
            config.first_frame_apart,
        )
        layers: list[nn.Module] = [CausalConv(config.latent_channels, config.channels[-1], (1, 3))]
        for stage, (outer, inner) in reversed(list(enumerate(config.halvings()))):
            layers.extend(_residual_blocks(config, stage + 1, noise_features))
            layers.append(Upsample(inner, outer))
        layers.extend(_residual_blocks(config, 0, noise_features))
        layers.append(ChannelNorm(config.channels[0], noise_features))
        layers.append(nn.SiLU())
        layers.append(init_zero(CausalConv(config.channels[0], config.folded_channels, (1, 3))))
        self.network = CausalSequential(*layers)
        self.chunk_size = 0  # latent frames; 0 for whole clips

    def forward(
        self, latent: Tensor, earlier: EarlierFrames | None = None, continues: bool = False
    ) -> Video:
        """Return the video of a latent.

        Args:
            latent: That of a whole clip, or a chunk of a stream, `(B, latent_channels, k, h, w)`.
            earlier: The frames that layers keep between the chunks of a stream; None for a whole clip.
            continues: Whether the chunk follows another one.
        """
        if earlier is None:
            residual = _in_temporal_chunks(self.network, self.chunk_size, latent)
        else:
            residual = self.network(latent, earlier)
        is_apart = self.first_frame_apart and not continues
        # The linear map first: its intermediate values are freed before `unfold` makes a video.
        video = self.linear(latent, continues=continues)
        return cast(Video, video + unfold(residual, *self.patch, is_apart))


class FlowDecoder(Decoder):
    """From a latent and a noisy video to the clean video, see `telecine.models.flow`.

    The noisy video is folded into patches like that of the encoder. It enters before the last blocks, and, through
    layers that halve height and width, before those of each other resolution down to the latent's: folded at once to
    32 x 32 pixels, its first layer would have more weights than all others.

    The network's output `F` is part of the clean video, `x0 = linear(z) + F`; or of the velocity,
    `v = (x_t - linear(z)) / t + F`, so that `x0 = x_t - t v = linear(z) - t F`. At the start both are `linear(z)`.

    Args:
        config: The architecture.
    """

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__(config, _NOISE_FEATURES)
        self.predicts_velocity = config.flow.prediction == "velocity"
        halvings = [Downsample(outer, inner) for outer, inner in config.halvings()]
        first = CausalConv(config.folded_channels, config.channels[0], (1, 3))
        self.noisy = nn.ModuleList([first, *halvings])
        self.level = nn.Sequential(  # makes the embedding of the noise level
            nn.Linear(_NOISE_FEATURES, _NOISE_FEATURES),
            nn.SiLU(),
            nn.Linear(_NOISE_FEATURES, _NOISE_FEATURES),
            nn.SiLU(),
        )

    def forward(  # type: ignore[override]
        self,
        latent: Tensor,
        noisy: Video,
        level: Tensor,
        earlier: EarlierFrames | None = None,
        continues: bool = False,
    ) -> Video:
        """Return the prediction of the clean video, `(B, C, T, H, W)`.

        Args:
            latent: That of a whole clip, or a chunk of a stream, `(B, latent_channels, k, h, w)`.
            noisy: The noisy video, `(B, C, T, H, W)`.
            level: The noise level of each clip, `(B,)` in (0, 1].
            earlier: The frames that layers keep between the chunks of a stream; None for a whole clip.
            continues: Whether the chunk follows another one.
        """
        embedding = self.level(_sinusoidal_embedding(level).to(latent.dtype))
        is_apart = self.first_frame_apart and not continues
        folded = fold(noisy.to(latent.dtype), *self.patch, is_apart)
        network = partial(self._residual, embedding)
        if earlier is None:
            residual = _in_temporal_chunks(network, self.chunk_size, latent, folded)
        else:
            residual = network(latent, folded, earlier)
        video = unfold(residual, *self.patch, is_apart)
        if self.predicts_velocity:
            video = -level.view(-1, 1, 1, 1, 1) * video
        return cast(Video, self.linear(latent, continues=continues) + video)

    def _residual(
        self,
        noise_embedding: Tensor,
        latent: Tensor,
        folded: Tensor,
        earlier: EarlierFrames | None = None,
    ) -> Tensor:
        noisy = [folded]  # then at each resolution, the highest first
        for layer in self.noisy:
            noisy.append(layer(noisy[-1]))
        x = latent
        for index, layer in enumerate(self.network):
            x = call_layer(layer, x, earlier, noise_embedding)
            if index == 0 or isinstance(layer, Upsample):
                x = x + noisy.pop()
        return x


def build_decoder(config: CausalVAEConfig) -> Decoder:
    """Return the decoder that settings name, with random weights."""
    return FlowDecoder(config) if config.decoder == "flow" else Decoder(config)


def _sinusoidal_embedding(level: Tensor) -> Tensor:
    """Return cosines and sines `(B, _NOISE_FEATURES)` of 1000 times the noise levels `(B,)`."""
    half = torch.arange(_NOISE_FEATURES // 2, device=level.device, dtype=level.dtype)
    angles = 1000 * level[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * half / len(half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class CausalAutoencoder(LatentAutoencoder):
    """An autoencoder whose `decoder` is a `Decoder` of its `config`."""

    config: CausalVAEConfig
    decoder: Decoder

    @property
    def in_channels(self) -> int:
        """Channels of the video, as the configuration says."""
        return self.config.in_channels

    @property
    def first_frame_apart(self) -> bool:
        """Whether the first latent frame encodes the first frame alone, as the configuration says."""
        return self.config.first_frame_apart

    @property
    def generates(self) -> bool:
        """Whether the decoder makes video of noise, and `decode` takes the noise."""
        return isinstance(self.decoder, FlowDecoder)

    def set_decoder(self, config: CausalVAEConfig) -> None:
        """Build the decoder, with random weights; one that generates is sampled in one step."""
        self.config = config
        self.decoder = build_decoder(config)
        self.nested_channels = config.nested_channels
        self.sampler = Sampler() if self.generates else None

    def decode(
        self, latent: Tensor, noise: Video | None = None, *, generator: Generators = None
    ) -> Video:
        """Return the video `(B, C, T, s*h, s*w)`, not clamped.

        Args:
            latent: `(B, latent_channels, k, h, w)`, or cut to one of `nested_channels`.
            noise: What a decoder that generates starts from, of the result's shape.
            generator: Draws the noise: one, or one for each clip. Without both, the noise is that of `sampler`.

        Raises:
            ValueError: The latent has another shape, or there is no noise in training.
        """
        latent = self._decoder_input(latent)
        if self.sampler is None:
            return cast(Video, self._call_decoder(latent))
        if noise is None:
            noise = self.decoding_noise(self.decoded_shape(latent), generator, latent.device)
        return integrate(partial(self.decoder, latent), noise, self._levels(noise))

    def _decoder_input(self, latent: Tensor) -> Tensor:
        """Return a latent with all channels and of the decoder's dtype."""
        check_video("latent", latent)
        if latent.shape[1] in self.nested_channels:
            num_missing = self.config.latent_channels - latent.shape[1]
            latent = nn.functional.pad(latent, (0, 0, 0, 0, 0, 0, 0, num_missing))
        if latent.shape[1] != self.config.latent_channels:
            contract = f"of shape (B, {self.config.latent_channels}, T, H, W)"
            raise argument_error(
                "latent", contract, latent, "Pass the output of `encode(...).sample()`."
            )
        return latent.to(self.last_layer.dtype)

    def _levels(self, noise: Video) -> list[float]:
        """Return the noise level before each step of the sampler, for frames of the size of the noise."""
        assert self.sampler is not None
        frame_size = self.position.frame_size or (noise.shape[3], noise.shape[4])
        return self.sampler.levels(self.config.flow.shift_of(*frame_size))

    @property
    def streams(self) -> bool:
        """True: the layers keep frames between chunks."""
        return True

    def stream_decoder(self, num_frames: int | None = None) -> StreamDecoder:
        """Return a stream that decodes a latent piece by piece; see `VideoAutoencoder.stream_decoder`."""
        sizes = ChunkSizes(first=1, others=self._chunk_frames(num_frames) // self._time)
        num_passes = 1 if self.sampler is None else self.sampler.steps
        passes: list[EarlierFrames] = [{} for _ in range(num_passes)]
        return StreamDecoder(partial(self._decode_chunk, passes, self.position), sizes)

    def _decode_chunk(
        self, passes: Sequence[EarlierFrames], start: ClipPosition, latent: Tensor, num_before: int
    ) -> Video:
        """Return the video of a chunk of a stream.

        Args:
            passes: The frames that the layers keep between chunks, for each step of the sampler.
            start: The position of the stream's first frame.
            latent: `(B, C, t, h, w)`.
            num_before: Latent frames before the chunk.
        """
        latent = self._decoder_input(latent)
        continues = num_before > 0
        if self.sampler is None:
            return cast(Video, self._call_decoder(latent, passes[0], continues))
        first_frame = start.first_frame + self._num_decoded_frames(num_before)
        shape = list(self.decoded_shape(latent))
        shape[2] = self._num_decoded_frames(num_before + latent.shape[2])
        shape[2] -= self._num_decoded_frames(num_before)
        remaining = iter(passes)

        def denoise(noisy: Video, level: Tensor) -> Video:
            earlier = next(remaining)
            return cast(Video, self.decoder(latent, noisy, level, earlier, continues))

        with clip_position(
            self, first_frame=first_frame, frame_size=start.frame_size, corner=start.corner
        ):
            noise = self.decoding_noise(shape, None, latent.device)
            return integrate(denoise, noise, self._levels(noise))

    @property
    def _time(self) -> int:
        return self.config.time_compression

    def _chunk_frames(self, num_frames: int | None) -> int:
        """Return the frames of a chunk of a stream: at most `num_frames`, and at least those of a latent frame."""
        if num_frames is None:
            return self._time
        check_count("num_frames", num_frames)
        return max(num_frames // self._time, 1) * self._time

    def _num_decoded_frames(self, num_latent_frames: int) -> int:
        if num_latent_frames == 0:
            return 0
        first = int(self.config.first_frame_apart)
        return first + self._time * (num_latent_frames - first)

    def decoded_shape(self, latent: Tensor) -> tuple[int, int, int, int, int]:
        """Return the shape `(B, C, T, H, W)` of the video of a latent."""
        num_frames = self._num_decoded_frames(latent.shape[2])
        space = self.config.spatial_compression
        return (
            len(latent),
            self.in_channels,
            num_frames,
            space * latent.shape[3],
            space * latent.shape[4],
        )

    def denoise(self, latent: Tensor, video: Video, generator: Generators) -> Reconstruction:
        """Add noise to each video at a random level and remove it.

        Args:
            latent: `(B, latent_channels, k, h, w)`.
            video: The clean video, `(B, C, T, H, W)` in [-1, 1].
            generator: One generator, or one for each clip; PyTorch's default generator if None.
        """
        denoised = self.denoised_clips(latent, video, generator)
        return Reconstruction(denoised.video, {}, weight=denoised.weight)

    def denoised_clips(self, latent: Tensor, video: Video, generator: Generators) -> DenoisedClips:
        """Return what the decoder makes of noisy videos, with the noise; see `denoise`.

        Args:
            latent: `(B, latent_channels, k, h, w)`.
            video: The clean video, `(B, C, T, H, W)` in [-1, 1].
            generator: One generator, or one for each clip; PyTorch's default generator if None.
        """
        denoise = partial(self._call_decoder, latent.to(self.last_layer.dtype))
        return denoised_clips(self.config.flow, denoise, video, generator)

    def validation_decodings(self) -> dict[str, dict[str, Any]]:
        """Return a few steps, for a decoder that generates and was not trained for one step."""
        return FEW_STEPS if self.generates and not self.config.flow.one_step else {}

    def _call_decoder(self, *inputs: Any) -> Any:
        # The adaptive weight needs the gradient of the last layer alone.
        return call_with_cast_weights(self.decoder, *inputs, separately=self.decoder.network[-1])

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution of the decoder's network."""
        return self.decoder.network.get_parameter(f"{len(self.decoder.network) - 1}.conv.weight")

    def latent_grid(self, num_frames: int, height: int, width: int) -> LatentGrid:
        """Return how the latent divides clips: as the configuration says, whatever their size.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
        """
        return LatentGrid(
            self.config.time_compression,
            self.config.spatial_compression,
            self.config.latent_channels,
            self.config.first_frame_apart,
        )

    def linear_autoencoder(self, num_frames: int, height: int, width: int) -> LinearAutoencoder:
        """Return an unfitted linear autoencoder with the same latent, whose codes are quantized as this model's.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
        """
        grid = self.latent_grid(num_frames, height, width)
        bottleneck = build_bottleneck(self.config)
        return LinearAutoencoder(
            **grid._asdict(), in_channels=self.in_channels, bottleneck=bottleneck
        )

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the inside of the residual blocks in the backward pass: less memory, more time."""
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.gradient_checkpointing = True

    @property
    def smallest_temporal_chunk(self) -> int:
        """The frames of a latent frame."""
        return self.config.time_compression

    def enable_temporal_chunks(self, num_frames: int) -> None:
        """Compute the networks in chunks of `num_frames` frames, a multiple of `time_compression`."""
        check_multiple("temporal_chunk", num_frames, step=self.config.time_compression)
        for module in self.children():
            if isinstance(module, (Encoder, Decoder)):
                module.chunk_size = num_frames // self.config.time_compression


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

    def encode(self, video: Video) -> Posterior:
        """Return the posterior of `(B, C, T, H, W)`, in float32 at least: of the quantized latent if it is discrete."""
        check_input(self, video)
        return self._posterior(video)

    def _posterior(
        self, video: Video, earlier: EarlierFrames | None = None, continues: bool = False
    ) -> Posterior:
        video = video.to(self.last_layer.dtype)
        mean, logvar = call_with_cast_weights(self.encoder, video, earlier, continues)
        if self.bottleneck is None:
            return DiagonalGaussian(mean=mean, logvar=logvar)
        return self.bottleneck.posterior(mean)

    def stream_encoder(self, num_frames: int | None = None) -> StreamEncoder:
        """Return a stream that encodes a video piece by piece; see `VideoAutoencoder.stream_encoder`."""
        first = int(self.config.first_frame_apart)
        sizes = ChunkSizes(
            first=first or self._time,
            others=self._chunk_frames(num_frames),
            multiple=self._time,
            offset=first,
        )
        return StreamEncoder(partial(self._encode_chunk, {}), sizes)

    def _encode_chunk(self, earlier: EarlierFrames, video: Video, num_before: int) -> Posterior:
        if num_before == 0:
            check_input(self, video)
        return self._posterior(video, earlier, continues=num_before > 0)

    @property
    def codebook(self) -> Bottleneck | None:
        """The discrete bottleneck, if the model has one."""
        return self.bottleneck

    def start_from(self, linear: LinearAutoencoder) -> None:
        """Copy a fitted `linear_autoencoder`, which the model equals until it is trained."""
        self.encoder.linear.load_state_dict(linear.encoder.state_dict())
        self.decoder.linear.load_state_dict(linear.decoder.state_dict())

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
        """Replace these numbers."""
        self.latent_statistics = statistics

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` atomically, low-rank updates merged into the weights."""
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
    def from_pretrained(cls, folder: str | PathLike[str]) -> CausalVAE:
        """Return the model that `save_pretrained` wrote, on the CPU, in float32 and training mode.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: The configuration is invalid, the weights do not match it, or an older version wrote them.
        """
        config = read_causal_config(folder)
        check_num_weights(lambda: cls(config), str(folder), folder)
        model = cls(config)
        saved = read_json(Path(folder) / CONFIG_FILE)
        mean = saved.get(MEAN_KEY)
        std = saved.get(STD_KEY)
        if mean is not None and std is not None:
            model.latent_statistics = LatentStatistics(mean, std)
        load_weights(model, folder)
        return model


def read_causal_config(folder: str | PathLike[str]) -> CausalVAEConfig:
    """Return the configuration in a model's folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is that of another class, an older version wrote it, or a setting is wrong.
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
    if isinstance(values.get("flow"), dict):
        values["flow"] = with_older_flow(values["flow"])
    return validate(CausalVAEConfig, values)


def _round_up(value: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `value`."""
    return step * -(-value // step)
