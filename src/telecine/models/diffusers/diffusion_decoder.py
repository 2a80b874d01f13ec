"""LTX-2.5's diffusion decoder with the frozen encoder of the autoencoder whose latents it decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, product
from operator import mul
from os import PathLike
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.frozen import Frozen
from telecine.base.randomness import Generators
from telecine.base.shapes import Video, check_video
from telecine.models.clip_sizes import size_error
from telecine.models.diffusers.checkpointing import enable
from telecine.models.diffusers.families import DiffusersModel
from telecine.models.diffusers.loading import build_module, load_module, save_module
from telecine.models.diffusers.normalisation import read_normalisation
from telecine.models.flow import Sampler, denoised_clips, integrate
from telecine.models.interface import Reconstruction, VideoAutoencoder
from telecine.models.latent import CHANNEL_KEYS, Normalisation
from telecine.models.linear import LinearAutoencoder
from telecine.models.pretrained import copy_state, digest_of_encoder
from telecine.models.student import LoadTeacher, Student
from telecine.settings.autoencoder import FlowConfig

# Key of `config.json`, which diffusers keeps: the digest of the teacher's encoder.
_DIGEST_KEY = "_teacher_encoder_sha256"
# Positions of time, height and width whose attention is computed at once.
_TILE = (8, 16, 16)


class DiffusionDecoder(Student):
    """`LTX2VideoDiffusionDecoderModel` of diffusers, and the frozen encoder of its teacher, `AutoencoderKLLTX2Video`.

    It is trained at random levels of noise, those of `flow`, and sampled as `CausalVAE` with `decoder: flow` is. Saved
    models are those of diffusers, with the teacher's statistics of the latent.
    """

    teacher_key = "_teacher"  # diffusers keeps keys that begin so
    sampler: Sampler
    flow: FlowConfig

    def __init__(self, module: DiffusersModel, teacher: str, load: LoadTeacher, *, digest: str) -> None:
        super().__init__(teacher, load, digest)
        module.set_attn_processor(_WindowAttention())
        self.module: DiffusersModel = module.train()
        self.flow = FlowConfig()
        self.sampler = Sampler(module.config.decoder_num_inference_steps)

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], teacher: str, load: LoadTeacher) -> DiffusionDecoder:
        """Return the decoder of a folder, or of a configuration (`.json`) with random weights.

        One that telecine has not saved gets the statistics of the teacher, which is loaded at once.
        """
        is_config = Path(source).suffix == ".json"
        module = build_module(source) if is_config else load_module(str(source))
        model = cls(module, teacher, load, digest=module.config.get(_DIGEST_KEY, ""))
        if not model.digest:
            model._adopt(model.load_teacher().latent_model)
        return model

    @classmethod
    def without_weights(cls, source: str | PathLike[str], teacher: str, build: LoadTeacher) -> DiffusionDecoder:
        """Return the decoder of a configuration with random weights and the teacher of `build`, to be planned."""
        model = cls(build_module(source), teacher, build, digest="")
        model._frozen = Frozen(model.load_teacher())
        return model

    def _adopt(self, teacher: VideoAutoencoder) -> None:
        for name in CHANNEL_KEYS:
            buffer, value = self.module.get_buffer(name), teacher.latent_normalisation().get(name)
            if not isinstance(value, list) or len(value) != len(buffer):
                contract = f"an autoencoder with `{name}` of {len(buffer)} channels"
                raise argument_error("teacher", contract, self.teacher, "Use the decoder's AutoencoderKLLTX2Video.")
            buffer.copy_(torch.tensor(value))
        self.digest, self._frozen = digest_of_encoder(teacher), Frozen(teacher)

    @property
    def in_channels(self) -> int:
        """Channels of the video, as the configuration says."""
        return int(self.module.config.out_channels)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the map from the last features to the pixels of a patch."""
        return self.module.get_parameter("decoder.conv_out.weight")

    def decode(self, latent: Tensor, noise: Video | None = None) -> Video:
        """Return the video that `sampler` makes of noise and a latent `(B, C, 1 + k, h, w)`, not clamped."""
        check_video("latent", latent)
        time, space = self._compression
        size = (1 + time * (latent.shape[2] - 1), space * latent.shape[3], space * latent.shape[4])
        noise = self.sampler.noise((len(latent), self.in_channels, *size), latent.device) if noise is None else noise
        return integrate(self._denoiser(latent), noise, self.sampler.levels(1.0))

    def denoise(self, latent: Tensor, video: Video, generator: Generators) -> Reconstruction:
        """Add noise to each video at a random level and remove it."""
        denoised, weight, _ = denoised_clips(self.flow, self._denoiser(latent), video, generator)
        return Reconstruction(denoised, {}, weight=weight)

    def _denoiser(self, latent: Tensor) -> Callable[[Video, Tensor], Video]:
        """Return the function from a noisy video and its level `(B,)` to the predicted clean video."""
        decoder = self.module.decoder
        context = decoder.forward_stage_4(decoder.forward_stages_1_to_3(latent.to(self.last_layer.dtype)))

        def denoise(video: Video, level: Tensor) -> Video:
            predicted = decoder.forward_diffusion_step(context, video.to(context.dtype), level)
            return video - level.view(-1, 1, 1, 1, 1) * predicted if decoder.model_output_type == "v" else predicted

        return denoise

    @property
    def _compression(self) -> tuple[int, int]:
        return self.module.config.temporal_compression_ratio, self.module.config.spatial_compression_ratio

    @property
    def _smallest_clip(self) -> tuple[int, int, int]:
        """The frames, height and width below which a window of attention would not fit."""
        config, (time, space) = self.module.config, self._compression
        windows = zip(*config.decoder_stage_kernels, config.decoder_stage5_kernel, strict=True)
        strides = zip((1, 1, 1), *config.decoder_upsample_strides, strict=True)
        # `1 + n` positions of the latent are at least `1 + scale * n` where a window has `k`.
        axes = (zip(of, accumulate(axis, mul), strict=True) for of, axis in zip(windows, strides, strict=True))
        frames, rows, columns = (max((k - 2 + scale) // scale for k, scale in axis) for axis in axes)
        return 1 + time * frames, space * (1 + rows), space * (1 + columns)

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` unless the teacher accepts clips of this size, and windows of attention fit in them."""
        super().check_clip(num_frames, height, width)
        size = {"num_frames": num_frames, "height": height, "width": width}
        for (name, value), smallest in zip(size.items(), self._smallest_clip, strict=True):
            if value < smallest:
                raise size_error(name, value, accepted=f"at least {smallest}", nearest=smallest)

    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, height, width) that is accepted and at least this large."""
        return super().covering_clip(*map(max, (num_frames, height, width), self._smallest_clip))

    def linear_autoencoder(self, num_frames: int, height: int, width: int) -> LinearAutoencoder | None:
        """Return that of the teacher's latent."""
        return self.latent_model.linear_autoencoder(num_frames, height, width)

    def latent_normalisation(self) -> Normalisation:
        """Return the teacher's, which the decoder holds as well."""
        return read_normalisation(self.module)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the inside of the blocks in the backward pass: less memory, more time."""
        enable(self.module)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the decoder as diffusers writes it, low-rank updates merged, and the teacher's name and digest."""
        self.module.register_to_config(**{self.teacher_key: self.public_name(self.teacher), _DIGEST_KEY: self.digest})
        save_module(self.module, folder)

    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the decoder's weights; those for the latents of another encoder are a `ValueError`."""
        loaded = load_module(str(folder))
        if loaded.config.get(_DIGEST_KEY) != self.digest:
            got = f"{self.teacher}, whose encoder differs"
            raise argument_error("teacher", f"the teacher of {folder}", got, f"Set `{self.teacher_key}` to that one.")
        copy_state(loaded.state_dict(), into=self.module, source=str(folder))


class _WindowAttention:
    """Attention of each position to the window around it, with the values of diffusers' processors, tile by tile.

    FlexAttention, the default there, has no backward on the CPU; unless it is compiled, it holds all scores at once.
    """

    def __call__(self, attn: DiffusersModel, hidden_states: Tensor, block_mask: None = None) -> Tensor:
        query, key, value = attn.project_qkv(hidden_states)  # (B, T, H, W, heads, features)
        sizes = zip(hidden_states.shape[1:4], attn.kernel_size, _TILE, strict=True)
        result = torch.empty_like(value)
        for tiles in product(*(_tiles(*size, hidden_states.device) for size in sizes)):
            queries, keys, (of_frames, of_rows, of_columns) = zip(*tiles, strict=True)
            mask = of_frames[:, None, None, :, None, None] & of_rows[:, None, None, :, None]
            mask = (mask & of_columns[:, None, None, :]).flatten(3).flatten(0, 2)
            at, seen = (slice(None), *queries), (slice(None), *keys)
            q, k, v = (x.flatten(1, 3).transpose(1, 2) for x in (query[at], key[seen], value[seen]))
            attended = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)  # the query is scaled
            result[at] = attended.transpose(1, 2).view_as(query[at])
        return cast(Tensor, attn.to_out[0](result.flatten(4)))


def _tiles(size: int, window: int, tile: int, device: torch.device) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield positions along an axis, those that they attend to, and a mask of the pairs; windows stay inside."""
    positions = torch.arange(size, device=device)
    first = (positions - window // 2).clamp(0, size - window)[:, None]
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        begin, end = (min(max(at - window // 2, 0), size - window) for at in (start, stop - 1))
        queries, keys = slice(start, stop), slice(begin, end + window)
        yield queries, keys, (positions[keys] >= first[queries]) & (positions[keys] < first[queries] + window)
