"""Any diffusers autoencoder of images or video as a `VideoAutoencoder`."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from telecine.base.checks import check_count
from telecine.base.randomness import Generators, keep_random_state, rand, randn
from telecine.base.shapes import Video, check_video
from telecine.models.channels import change_channels
from telecine.models.clip_sizes import (
    ClipSizes,
    ProbedAutoencoder,
    check_multiple,
    size_error,
)
from telecine.models.diffusers.calls import takes_level
from telecine.models.diffusers.checkpointed_blocks import enable_checked
from telecine.models.diffusers.families import family_of, prepare_for_training
from telecine.models.diffusers.family import clear_caches
from telecine.models.diffusers.loading import build_module, find_config, load_module, save_module
from telecine.models.diffusers.normalisation import read_normalisation, write_normalisation
from telecine.models.diffusers.outputs import DiffusersModel
from telecine.models.diffusers.row_layers import row_split_of
from telecine.models.diffusers.streams import CACHE_ATTRIBUTE
from telecine.models.flow import LatentNoise, add_noise
from telecine.models.interface import Reconstruction, check_input
from telecine.models.latent import LatentGrid, LatentStatistics, Normalisation, Posterior
from telecine.models.latent_autoencoder import LatentAutoencoder
from telecine.models.pretrained import copy_state
from telecine.models.row_split import RowSplit
from telecine.models.stream import StreamDecoder, StreamEncoder
from telecine.ops.checkpoint_call import checkpoint_module
from telecine.ops.pass_options import pass_options

LARGEST_LEVEL = 0.2
"""Levels of noise of the latent in training are uniform up to this one, as of LTX-Video (arXiv:2501.00103)."""


class DiffusersAutoencoder(ProbedAutoencoder, LatentAutoencoder):
    """A diffusers autoencoder that can be trained: `forward` encodes, samples and decodes, with all gradients.

    Input and output are `(B, 3, T, H, W)` in [-1, 1] for every class, and the output is not clamped. Tiling and
    slicing, which change outputs and gradients, are disabled. The auxiliary losses are `{"kl_loss": the
    posterior's moments}`, a quantizer's losses, or none, e.g. for Cosmos, KVAE and finite scalar quantization. Accepted
    sizes and the last layer are found by passing tiny clips through the model. Image autoencoders process each frame of
    a clip separately: an image is a clip of one frame. In some classes (Wan, Qwen, Mochi), clips of one frame leave the
    weights that mix frames without a gradient. DDP then needs `find_unused_parameters=True`.

    The decoder of LTX-Video from 0.9.1 on removes noise from the latent. In training, each clip's latent gets noise of
    a random level, of which the decoder is told. Otherwise the level is that of `sampler`, by default 0, as in the
    pipelines of diffusers (`decode_timestep`). Noise that such a decoder draws inside is then the same each time.

    Args:
        module: The diffusers model, or any module with `encode` and `decode` of the same signatures. It is switched to
            training mode. Its weights and buffers have the prefix `module.` in the state dict.

    Raises:
        TypeError: The model has no `encode` or `decode`.
        ValueError: The class is of audio or proteins, has no encoder, or a diffusion model as the decoder.
    """

    sampler: LatentNoise | None

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.family = family_of(module)
        prepare_for_training(module, self.family)
        self.leaves_weights_unused = self.family.leaves_weights_unused
        # `from_pretrained` of diffusers returns models in eval mode.
        self.module: DiffusersModel = module.train()
        only_side = None
        if self.family.only_side is not None:
            only_side = getattr(module, self.family.only_side)
        self.sizes = ClipSizes(
            module, self.family.reconstruct, self.family.in_channels(module), only_side
        )
        self.sampler = LatentNoise() if takes_level(module) else None

    def encode(self, video: Video) -> Posterior:
        """Return the posterior of `(B, C, T, H, W)`, with a latent `(B, C, t, h, w)` in float32 at least."""
        check_input(self, video)
        return self.family.encode(self.module, video)

    def decode(self, latent: Tensor, *, generator: Generators = None) -> Video:
        """Return the video of a latent `(B, C, t, h, w)`, not clamped.

        Args:
            latent: `(B, C, t, h, w)`.
            generator: Of a decoder that removes noise: one, or one for each clip, which draws the noise of `sampler`'s
                level, while PyTorch's default generator draws what the decoder adds itself. None for fixed noise.

        Raises:
            ValueError: There is no generator in training, and the decoder removes noise.
        """
        check_video("latent", latent)
        if self.sampler is not None and generator is None:
            self.check_not_training()
        video, _ = self._decode(latent, generator)
        return video

    def decode_with_losses(self, latent: Tensor) -> tuple[Video, dict[str, Tensor]]:
        """Return the video of a latent, not clamped, and the losses of a quantizer in the decoder."""
        return self._decode(latent, None)

    def _decode(self, latent: Tensor, generator: Generators) -> tuple[Video, dict[str, Tensor]]:
        """Return the video of a latent, with noise of `sampler`'s level, and the losses of a quantizer."""
        if self.sampler is None:
            return self.family.decode(self.module, latent)
        noise_level = latent.new_full((len(latent),), self.sampler.level)
        if self.sampler.level:
            latent = add_noise(latent, self._noise_like(latent, generator), noise_level)
        if generator is not None:
            return self.family.decode(self.module, latent, noise_level)
        with keep_random_state(latent.device):
            torch.manual_seed(self.sampler.seed)
            return self.family.decode(self.module, latent, noise_level)

    def _noise_like(self, latent: Tensor, generator: Generators) -> Tensor:
        """Return noise drawn from a generator, or the noise of `sampler` at the position of the latent without one."""
        if generator is not None:
            return randn(
                latent.shape, generator=generator, device=latent.device, dtype=latent.dtype
            )
        assert self.sampler is not None
        time = self.module.temporal_compression_ratio
        space = self.module.spatial_compression_ratio
        position = pass_options().clip_position.in_latent(time, space)
        return self.sampler.noise(latent.shape, position, latent.device)

    def training_output(
        self, latent: Tensor, video: Video, generator: Generators
    ) -> Reconstruction:
        """Decode each latent with noise of a random level, of which the decoder is told.

        Args:
            latent: `(B, C, t, h, w)`.
            video: Not used.
            generator: One generator, or one for each clip; PyTorch's default generator if None.
        """
        noise_level = (
            LARGEST_LEVEL * rand((len(latent), 1), generator=generator, device=latent.device)[:, 0]
        )
        noise = randn(latent.shape, generator=generator, device=latent.device, dtype=latent.dtype)
        decoded, losses = self.family.decode(
            self.module, add_noise(latent, noise, noise_level), noise_level
        )
        return Reconstruction(decoded, {**losses})

    @property
    def first_frame_apart(self) -> bool:
        """Whether the first latent frame encodes the first frame alone, as the family or the configuration says."""
        is_apart = self.family.first_frame_apart
        if isinstance(is_apart, str):
            return bool(getattr(self.module, is_apart))
        return is_apart

    def latent_grid(self, num_frames: int, height: int, width: int) -> LatentGrid | None:
        """Return how the latent divides clips.

        None if the frames, after a first one that is apart, or the pixels do not divide evenly over the latent's.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels, which does not matter: the latent of small frames has the same grid.
            width: Width in pixels, as `height`.
        """
        _, side, _ = self.sizes.smallest
        latent_shape = self.sizes.shape_of(self.family.encode_mode, (num_frames, side, side))
        _, channels, latent_frames, rows, _ = latent_shape
        is_apart = self.first_frame_apart
        # Frames that belong to latent frames after the first one that is apart.
        num_others = num_frames - int(is_apart)
        latent_others = latent_frames - int(is_apart)
        if (
            side % rows
            or num_others % max(latent_others, 1)
            or (num_others > 0) != (latent_others > 0)
        ):
            return None
        return LatentGrid(
            time_compression=max(num_others // max(latent_others, 1), 1),
            spatial_compression=side // rows,
            latent_channels=channels,
            first_frame_apart=is_apart,
        )

    def row_split(self) -> RowSplit | None:
        """Return how several processes share a clip; None for a class that is not declared for it.

        Raises:
            ValueError: An option of the model depends on whole frames.
        """
        if self.family.row_layers is None:
            return None
        grid = self.latent_grid(*self.sizes.smallest)
        if grid is None:
            return None
        return row_split_of(self.module, self.family.row_layers, grid.spatial_compression)

    def with_channels(self, in_channels: int) -> "DiffusersAutoencoder":
        """Return this model for other channels; its configuration has their number. See `change_channels`.

        Raises:
            ValueError: The layers of its class cannot get other channels.
        """
        if self.family.changes_channels == "no":
            raise self._channels_error(in_channels)
        config = {
            name: value for name, value in self.module.config.items() if not name.startswith("_")
        }
        for name in ("in_channels", "out_channels", "out_ch", "input_channels"):
            if name in config:
                config[name] = config[name] * in_channels // self.in_channels
        module = type(self.module).from_config(config)
        has_patches = self.family.changes_channels == "patches"
        change_channels(
            self.module.state_dict(), module, self.in_channels, in_channels, has_patches=has_patches
        )
        return DiffusersAutoencoder(module)

    def latent_normalisation(self) -> Normalisation:
        """Return `latents_mean` and `latents_std`, or `scaling_factor` and `shift_factor`, as the class has them."""
        return read_normalisation(self.module, self.family.normalised)

    def set_latent_statistics(self, statistics: LatentStatistics) -> None:
        """Replace the numbers that `latent_normalisation` returns."""
        write_normalisation(self.module, self.family.normalised, statistics)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the inside of the model's blocks.

        Raises:
            ValueError: A tiny clip's gradients change.
        """
        enable_checked(self.module, self.family.checkpointed_blocks, self.sizes)

    @property
    def streams(self) -> bool:
        """Whether the class keeps frames between chunks."""
        return self.family.stream is not None

    def stream_encoder(self, num_frames: int | None = None) -> StreamEncoder:
        """Return a stream that encodes a video a few frames at a time.

        Raises:
            ValueError: The class keeps no frames between chunks.
        """
        if self.family.stream is None:
            return super().stream_encoder(num_frames)
        return self.family.stream.encoder(self.module, self.sizes, num_frames)

    def stream_decoder(self, num_frames: int | None = None) -> StreamDecoder:
        """Return a stream that decodes a latent a few frames at a time.

        Raises:
            ValueError: The class keeps no frames between chunks.
        """
        if self.family.stream is None:
            return super().stream_decoder(num_frames)
        return self.family.stream.decoder(self.module, num_frames)

    @property
    def smallest_temporal_chunk(self) -> int | None:
        """The frames of the class's own chunks; None if it keeps no frames between chunks."""
        return None if self.family.stream is None else self.family.stream.chunk

    def enable_temporal_chunks(self, num_frames: int) -> None:
        """Compute clips in chunks of `num_frames` frames; the accepted sizes stay.

        The encoder and the decoder are called once for each chunk, and each call is computed again in the backward.

        Raises:
            ValueError: The class keeps no frames between chunks, or does not support this number.
        """
        stream = self.family.stream
        if stream is None:
            raise self._chunks_error()
        check_count("temporal_chunk", num_frames)
        if stream.set_chunk is not None:
            check_multiple("temporal_chunk", num_frames, step=stream.chunk)
            calls = stream.set_chunk(self.module, num_frames)
            if calls is not None:
                self.family = replace(self.family, encoder=calls.encoder, decoder=calls.decoder)
        elif num_frames != stream.chunk:
            accepted = str(stream.chunk)
            raise size_error("temporal_chunk", num_frames, accepted=accepted, nearest=stream.chunk)
        for part in (self.module.encoder, self.module.decoder):
            checkpoint_module(part, CACHE_ATTRIBUTE)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write configuration and weights, LoRA adapters merged, as diffusers writes them."""
        clear_caches(self.module)
        save_module(self.module, folder)

    def load_weights(self, folder: str | PathLike[str]) -> Self:
        """Copy a folder's weights into this model, which keeps its device and dtype; return it."""
        copy_state(load_module(str(folder)).state_dict(), into=self.module, source=str(folder))
        return self

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | PathLike[str],
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        with_weights: bool = True,
    ) -> "DiffusersAutoencoder":
        """Return the model of a folder or a Hub name, in float32; errors are those of `load_autoencoder`.

        Args:
            name_or_folder: A folder, or the name of a model on the Hub.
            subfolder: Subfolder of the model. Default: "vae" for a whole pipeline.
            revision: Branch, tag or commit on the Hub.
            with_weights: Whether the model has its weights. Otherwise only its configuration is read.
        """
        if not with_weights:
            config, _ = find_config(str(name_or_folder), subfolder, revision)
            return cls(build_module(config))
        return cls(load_module(str(name_or_folder), subfolder, revision))

    @classmethod
    def from_config(cls, config: str | PathLike[str] | Mapping[str, Any]) -> "DiffusersAutoencoder":
        """Return a model with random weights: of a `config.json` of diffusers, its folder, or its values.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The class or an argument is wrong.
        """
        return cls(build_module(config))

    def __getstate__(self) -> dict[str, Any]:
        clear_caches(self.module)
        return self.__dict__
