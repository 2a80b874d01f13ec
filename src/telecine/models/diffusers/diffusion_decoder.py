"""LTX-2.5's diffusion decoder with the frozen encoder of the autoencoder whose latents it decodes."""

from __future__ import annotations

from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from telecine.base.checks import argument_error
from telecine.base.frozen import FrozenModule
from telecine.base.randomness import Generators
from telecine.base.shapes import Video, check_video
from telecine.models.clip_sizes import size_error
from telecine.models.diffusers.checkpointed_blocks import enable
from telecine.models.diffusers.loading import build_module, load_module, save_module
from telecine.models.diffusers.normalisation import Normalised, read_normalisation
from telecine.models.diffusers.outputs import DiffusersModel
from telecine.models.flow import (
    FEW_STEPS,
    EulerSampler,
    Predictor,
    denoise_at_random_levels,
    integrate,
)
from telecine.models.frozen_encoder import LoadTeacher, TeacherEncoderModel
from telecine.models.interface import Reconstruction, VideoAutoencoder
from telecine.models.latent import MEAN_KEY, STD_KEY, LatentGrid, Normalisation
from telecine.models.linear import LinearAutoencoder
from telecine.models.pretrained import copy_state, digest_of_encoder
from telecine.settings import CausalVAEConfig
from telecine.settings.autoencoder import FlowConfig

# Classes of blocks that are computed again in the backward pass.
_BLOCKS = ("LTX2VideoVaeNABlock", "LTX2VideoVaeDiffusionNABlock")
# Key of `config.json`, which diffusers keeps: the digest of the teacher's encoder.
_DIGEST_KEY = "_teacher_encoder_sha256"
# Positions of time, height and width whose attention is computed at once.
_TILE = (8, 16, 16)


class DiffusionDecoder(TeacherEncoderModel):
    """`LTX2VideoDiffusionDecoderModel` of diffusers, and the frozen encoder of its teacher, `AutoencoderKLLTX2Video`.

    It is trained at random levels of noise, those of `flow`, and sampled as `CausalVAE` with `decoder: flow` is. Saved
    models are those of diffusers, with the teacher's statistics of the latent.

    Args:
        module: The decoder.
        teacher: The teacher's name.
        load: Called with this name when the teacher is needed.
        digest: That of the teacher's encoder; "" if the decoder has none yet.
    """

    teacher_key = "_teacher"  # diffusers keeps keys that begin so
    sampler: EulerSampler
    flow: FlowConfig

    def __init__(
        self, module: DiffusersModel, teacher: str, load: LoadTeacher, *, digest: str
    ) -> None:
        super().__init__(teacher, load, digest)
        module.set_attn_processor(WindowAttention())
        self.module: DiffusersModel = module.train()
        self.flow = FlowConfig()
        self.sampler = EulerSampler(steps=module.config.decoder_num_inference_steps)

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        teacher: str,
        load: LoadTeacher,
        *,
        with_weights: bool = True,
    ) -> DiffusionDecoder:
        """Return the decoder of a folder, or of a configuration (`.json`) with random weights.

        One that telecine has not saved gets the statistics of the teacher, which is loaded at once.

        Args:
            source: A folder, or a configuration of diffusers.
            teacher: The teacher's name.
            load: Called with this name when the teacher is needed: at once without weights.
            with_weights: Whether it has the saved weights. Otherwise only its configuration is read.

        Raises:
            FileNotFoundError: There are no weights, or no such teacher.
            ValueError: The configuration is wrong, or the teacher has another latent.
        """
        if not with_weights:
            model = cls(build_module(source), teacher, load, digest="")
            model._frozen = FrozenModule(model.load_teacher())
            return model
        is_config = Path(source).suffix == ".json"
        module = build_module(source) if is_config else load_module(str(source))
        model = cls(module, teacher, load, digest=module.config.get(_DIGEST_KEY, ""))
        if not model.digest:
            model._adopt(model.load_teacher().encoder_model)
        return model

    def _adopt(self, teacher: VideoAutoencoder) -> None:
        normalisation = teacher.latent_normalisation()
        for name in (MEAN_KEY, STD_KEY):
            buffer = self.module.get_buffer(name)
            values = normalisation.get(name)
            if not isinstance(values, list) or len(values) != len(buffer):
                contract = f"an autoencoder with `{name}` of {len(buffer)} channels"
                raise argument_error(
                    "teacher", contract, self.teacher, "Use the decoder's AutoencoderKLLTX2Video."
                )
            buffer.copy_(torch.tensor(values))
        self.digest = digest_of_encoder(teacher)
        self._frozen = FrozenModule(teacher)

    @property
    def in_channels(self) -> int:
        """Channels of the video, as the configuration says."""
        return int(self.module.config.out_channels)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the map from the last features to the pixels of a patch."""
        return self.module.get_parameter("decoder.conv_out.weight")

    def decode(
        self, latent: Tensor, noise: Video | None = None, *, generator: Generators = None
    ) -> Video:
        """Return the video that `sampler` makes of noise and a latent, not clamped.

        Args:
            latent: `(B, C, 1 + k, h, w)`.
            noise: What it starts from, of the result's shape.
            generator: Draws the noise: one, or one for each clip. Without both, `sampler` has the noise.

        Raises:
            ValueError: There is no noise in training.
        """
        check_video("latent", latent)
        if noise is None:
            time, space = self._compression
            num_frames = 1 + time * (latent.shape[2] - 1)
            shape = (
                len(latent),
                self.in_channels,
                num_frames,
                space * latent.shape[3],
                space * latent.shape[4],
            )
            noise = self.decoding_noise(shape, generator, latent.device)
        return integrate(self._predictor(latent), noise, self.sampler.levels(1.0))

    def training_output(
        self, latent: Tensor, video: Video, generator: Generators
    ) -> Reconstruction:
        """Add noise to each video at a random level and remove it.

        Args:
            latent: `(B, C, 1 + k, h, w)`.
            video: The clean video, `(B, C, T, H, W)` in [-1, 1].
            generator: One generator, or one for each clip; PyTorch's default generator if None.
        """
        denoised = denoise_at_random_levels(self.flow, self._predictor(latent), video, generator)
        return Reconstruction(denoised.video, {}, weight=denoised.weight)

    def validation_decodings(self) -> dict[str, dict[str, Any]]:
        """Return a few steps, unless the decoder is trained for one step."""
        return {} if self.flow.one_step else FEW_STEPS

    def use_training_settings(self, settings: CausalVAEConfig) -> None:
        """Take over the levels of noise."""
        self.flow = settings.flow

    def _predictor(self, latent: Tensor) -> Predictor:
        """Return the function from a noisy video and its level `(B,)` to the predicted clean video."""
        decoder = self.module.decoder
        context = decoder.forward_stage_4(
            decoder.forward_stages_1_to_3(latent.to(self.last_layer.dtype))
        )

        def predict(video: Video, noise_level: Tensor) -> Video:
            predicted = decoder.forward_diffusion_step(
                context, video.to(context.dtype), noise_level
            )
            if decoder.model_output_type == "v":
                return video - noise_level.view(-1, 1, 1, 1, 1) * predicted
            return predicted

        return predict

    @property
    def _compression(self) -> tuple[int, int]:
        return (
            self.module.config.temporal_compression_ratio,
            self.module.config.spatial_compression_ratio,
        )

    @property
    def smallest_clip(self) -> tuple[int, int, int]:
        """The fewest frames, height and width in which the windows of attention fit."""
        time, space = self._compression
        num_frames = 1 + time * self._smallest_number(axis=0)
        height = space * (1 + self._smallest_number(axis=1))
        width = space * (1 + self._smallest_number(axis=2))
        return num_frames, height, width

    def _smallest_number(self, axis: int) -> int:
        """Return the positions after the first one that the latent needs along an axis: 0 time, 1 height, 2 width."""
        config = self.module.config
        kernels = [*config.decoder_stage_kernels, config.decoder_stage5_kernel]
        strides = [(1, 1, 1), *config.decoder_upsample_strides]
        smallest = 0
        scale = 1
        for kernel, stride in zip(kernels, strides, strict=True):
            # `1 + n` positions of the latent are at least `1 + scale * n` here, where the window has `kernel` of them.
            scale *= stride[axis]
            smallest = max(smallest, (kernel[axis] - 2 + scale) // scale)
        return smallest

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Check that the teacher accepts clips of this size, and that windows of attention fit in them.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: They do not.
        """
        super().check_clip(num_frames, height, width)
        frames, rows, columns = self.smallest_clip
        for name, value, smallest in (
            ("num_frames", num_frames, frames),
            ("height", height, rows),
            ("width", width, columns),
        ):
            if value < smallest:
                raise size_error(name, value, accepted=f"at least {smallest}", nearest=smallest)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, height, width) that is accepted and at least this large.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.
        """
        frames, rows, columns = self.smallest_clip
        return super().covering_clip(
            max(num_frames, frames), max(height, rows), max(width, columns)
        )

    def latent_grid(self, num_frames: int, height: int, width: int) -> LatentGrid | None:
        """Return the grid of the teacher's latent.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
        """
        return self.encoder_model.latent_grid(num_frames, height, width)

    def linear_autoencoder(
        self, num_frames: int, height: int, width: int
    ) -> LinearAutoencoder | None:
        """Return an unfitted linear autoencoder with the teacher's latent.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
        """
        return self.encoder_model.linear_autoencoder(num_frames, height, width)

    def latent_normalisation(self) -> Normalisation:
        """Return the numbers that normalise the teacher's latent, which the decoder holds as well."""
        return read_normalisation(self.module, Normalised.BUFFERS)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the inside of the blocks in the backward pass: less memory, more time."""
        enable(self.module, _BLOCKS)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the decoder as diffusers writes it, LoRA adapters merged, and the teacher's name and digest."""
        self.module.register_to_config(
            **{self.teacher_key: self.teacher_from(folder), _DIGEST_KEY: self.digest}
        )
        save_module(self.module, folder)

    def load_weights(self, folder: str | PathLike[str]) -> Self:
        """Copy the decoder's weights, and return the model.

        Raises:
            FileNotFoundError: There are no weights.
            ValueError: They do not fit, or decode the latents of another encoder.
        """
        loaded = load_module(str(folder))
        if loaded.config.get(_DIGEST_KEY) != self.digest:
            got = f"{self.teacher}, whose encoder differs"
            raise argument_error(
                "teacher", f"the teacher of {folder}", got, f"Set `{self.teacher_key}` to that one."
            )
        copy_state(loaded.state_dict(), into=self.module, source=str(folder))
        return self


class WindowAttention:
    """Attention of each position to the window around it, with the values of diffusers' processors, tile by tile.

    FlexAttention, the default there, has no backward on the CPU; unless it is compiled, it holds all scores at once.
    """

    def __call__(
        self, attn: DiffusersModel, hidden_states: Tensor, block_mask: None = None
    ) -> Tensor:
        """Return the output of an attention layer.

        Args:
            attn: The layer.
            hidden_states: `(B, T, H, W, C)`.
            block_mask: Not used.
        """
        query, key, value = attn.project_qkv(hidden_states)  # (B, T, H, W, heads, features)
        tiles = [
            _tiles(size, window, tile, hidden_states.device)
            for size, window, tile in zip(
                hidden_states.shape[1:4], attn.kernel_size, _TILE, strict=True
            )
        ]
        result = torch.empty_like(value)
        for frames, rows, columns in product(*tiles):
            queries = (slice(None), frames.queries, rows.queries, columns.queries)
            keys = (slice(None), frames.keys, rows.keys, columns.keys)
            q = _flatten_positions(query[queries])
            k = _flatten_positions(key[keys])
            v = _flatten_positions(value[keys])
            # Of (frames, rows, columns) of the queries and of the keys.
            mask = frames.mask[:, None, None, :, None, None]
            mask = mask & rows.mask[:, None, None, :, None]
            mask = mask & columns.mask[:, None, None, :]
            mask = mask.flatten(3).flatten(0, 2)
            # `project_qkv` has scaled the query.
            attended = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)
            result[queries] = attended.transpose(1, 2).view_as(query[queries])
        return cast(Tensor, attn.to_out[0](result.flatten(4)))


def _flatten_positions(x: Tensor) -> Tensor:
    """Return `(B, heads, T * H * W, features)` of `(B, T, H, W, heads, features)`."""
    return x.flatten(1, 3).transpose(1, 2)


class _Tile(NamedTuple):
    """Positions along an axis whose attention is computed at once."""

    queries: slice
    keys: slice
    """The positions that they attend to."""
    mask: Tensor
    """Which of the keys each query attends to."""


def _tiles(size: int, window: int, tile: int, device: torch.device) -> list[_Tile]:
    """Return the tiles of an axis of `size` positions; windows stay inside."""
    positions = torch.arange(size, device=device)
    first = (positions - window // 2).clamp(0, size - window)[:, None]
    tiles = []
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        begin = _clamp(start - window // 2, 0, size - window)
        end = _clamp(stop - 1 - window // 2, 0, size - window) + window
        queries = slice(start, stop)
        keys = slice(begin, end)
        is_after = positions[keys] >= first[queries]
        is_before = positions[keys] < first[queries] + window
        tiles.append(_Tile(queries, keys, is_after & is_before))
    return tiles


def _clamp(value: int, lowest: int, highest: int) -> int:
    return min(max(value, lowest), highest)
