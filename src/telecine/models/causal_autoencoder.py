"""Autoencoders with the decoder of `CausalVAE`: decoding at once and as a stream, from a latent or from noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from telecine.base.checks import argument_error, check_count
from telecine.base.precision import call_with_cast_weights
from telecine.base.randomness import Generators
from telecine.base.shapes import Video, check_video
from telecine.models import causal_blocks, causal_networks, linear
from telecine.models.bottleneck import build_bottleneck
from telecine.models.causal_blocks import (
    FrameCache,
    ResidualBlock,
)
from telecine.models.causal_networks import Decoder, Encoder, FlowDecoder, build_decoder
from telecine.models.channels import RGBAConv3d
from telecine.models.clip_sizes import check_multiple
from telecine.models.flow import (
    FEW_STEPS,
    DenoisedClips,
    EulerSampler,
    denoise_at_random_levels,
    integrate,
)
from telecine.models.interface import Reconstruction
from telecine.models.latent import (
    LatentGrid,
)
from telecine.models.latent_autoencoder import LatentAutoencoder
from telecine.models.linear import LinearAutoencoder
from telecine.models.row_split import RowNetwork, RowSplit
from telecine.models.stream import ChunkSizes, StreamDecoder
from telecine.ops.pass_options import ClipPosition, clip_position, pass_options
from telecine.settings import CausalVAEConfig

# See `RowSplit.unchanged`.
_LAYERS_OF_ROWS: frozenset[type] = frozenset(
    {
        nn.Linear,
        nn.ModuleList,
        nn.Sequential,
        nn.SiLU,
        causal_networks.Decoder,
        causal_networks.Encoder,
        causal_networks.FlowDecoder,
        causal_blocks.CausalConv,
        causal_blocks.CausalSequential,
        causal_blocks.ChannelNorm,
        causal_blocks.Downsample,
        causal_blocks.ResidualBlock,
        causal_blocks.Upsample,
        linear.PatchDecoder,
        linear.PatchEncoder,
        RGBAConv3d,
    }
)


class CausalAutoencoder(LatentAutoencoder):
    """An autoencoder whose `decoder` is a `Decoder` of its `config`."""

    config: CausalVAEConfig
    decoder: Decoder
    sampler: EulerSampler | None

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

    def row_split(self) -> RowSplit:
        """Return how several processes share a clip: the decoder computes rows.

        A student has its teacher's encoder, which keeps no activations.
        """
        return RowSplit(
            spatial_compression=self.config.spatial_compression,
            networks={"decoder": RowNetwork(self.decoder, 1)},
            unchanged=_LAYERS_OF_ROWS,
            replaced={},
        )

    def set_decoder(self, config: CausalVAEConfig) -> None:
        """Build the decoder, with random weights; one that generates is sampled in one step."""
        self.config = config
        self.decoder = build_decoder(config)
        self.nested_channels = config.nested_channels
        self.sampler = EulerSampler() if self.generates else None

    def decode(
        self, latent: Tensor, noise: Video | None = None, *, generator: Generators = None
    ) -> Video:
        """Return the video `(B, C, T, s*h, s*w)`, not clamped.

        Args:
            latent: `(B, latent_channels, k, h, w)`, or cut to one of `nested_channels`.
            noise: What a decoder that generates starts from, of the result's shape.
            generator: Draws the noise: one, or one for each clip. Without both, `sampler` has the noise.

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
        frame_size = pass_options().clip_position.frame_size or (noise.shape[3], noise.shape[4])
        return self.sampler.levels(self.config.flow.shift_of(*frame_size))

    @property
    def streams(self) -> bool:
        """True: the layers keep frames between chunks."""
        return True

    def stream_decoder(self, num_frames: int | None = None) -> StreamDecoder:
        """Return a stream that decodes a latent a few frames at a time; see `VideoAutoencoder.stream_decoder`."""
        sizes = ChunkSizes(first=1, others=self._chunk_frames(num_frames) // self._time)
        num_passes = 1 if self.sampler is None else self.sampler.steps
        passes: list[FrameCache] = [{} for _ in range(num_passes)]
        return StreamDecoder(
            partial(self._decode_chunk, passes, pass_options().clip_position), sizes
        )

    def _decode_chunk(
        self, passes: Sequence[FrameCache], start: ClipPosition, latent: Tensor, num_before: int
    ) -> Video:
        """Return the video of a chunk of a stream.

        Args:
            passes: The frames that the layers keep between chunks, for each step of the sampler.
            start: The position of the stream's first frame.
            latent: `(B, C, t, h, w)`.
            num_before: Latent frames before the chunk.
        """
        latent = self._decoder_input(latent)
        first_chunk = num_before == 0
        if self.sampler is None:
            return cast(Video, self._call_decoder(latent, passes[0], first_chunk))
        first_frame = start.first_frame + self._num_decoded_frames(num_before)
        shape = list(self.decoded_shape(latent))
        shape[2] = self._num_decoded_frames(num_before + latent.shape[2])
        shape[2] -= self._num_decoded_frames(num_before)
        remaining = iter(passes)

        def predict(noisy: Video, noise_level: Tensor) -> Video:
            cache = next(remaining)
            return cast(Video, self.decoder(latent, noisy, noise_level, cache, first_chunk))

        with clip_position(
            first_frame=first_frame, frame_size=start.frame_size, corner=start.corner
        ):
            noise = self.decoding_noise(shape, None, latent.device)
            return integrate(predict, noise, self._levels(noise))

    @property
    def _time(self) -> int:
        return self.config.time_compression

    def _chunk_frames(self, num_frames: int | None) -> int:
        """Return the frames of a chunk of a stream: at most `num_frames`, and at least one latent frame's."""
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

    def training_output(
        self, latent: Tensor, video: Video, generator: Generators
    ) -> Reconstruction:
        """Add noise to each video at a random level and remove it.

        Args:
            latent: `(B, latent_channels, k, h, w)`.
            video: The clean video, `(B, C, T, H, W)` in [-1, 1].
            generator: One generator, or one for each clip; PyTorch's default generator if None.
        """
        denoised = self._denoise_clips(latent, video, generator)
        return Reconstruction(denoised.video, {}, weight=denoised.weight)

    def _denoise_clips(self, latent: Tensor, video: Video, generator: Generators) -> DenoisedClips:
        """Return what the decoder makes of noisy videos, with the noise; see `training_output`.

        Args:
            latent: `(B, latent_channels, k, h, w)`.
            video: The clean video, `(B, C, T, H, W)` in [-1, 1].
            generator: One generator, or one for each clip; PyTorch's default generator if None.
        """
        predict = partial(self._call_decoder, latent.to(self.last_layer.dtype))
        return denoise_at_random_levels(self.config.flow, predict, video, generator)

    def validation_decodings(self) -> dict[str, dict[str, Any]]:
        """Return a few steps, for a decoder that generates and was not trained for one step."""
        return FEW_STEPS if self.generates and not self.config.flow.one_step else {}

    def _call_decoder(self, *inputs: Any) -> Any:
        # The adaptive weight differentiates the last layer alone: cast with the others, it would cost their backward.
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
