"""A small generator of latents: a frozen autoencoder, and a transformer that removes noise from its latents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from os import PathLike
from typing import Any, cast

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from telecine.base.frozen import FrozenModule
from telecine.base.randomness import Generators, randn
from telecine.base.shapes import Video
from telecine.models.causal_blocks import init_zero
from telecine.models.flow import EulerSampler, add_noise, integrate, random_levels
from telecine.models.frozen_encoder import FrozenEncoderModel
from telecine.models.interface import Reconstruction, VideoAutoencoder
from telecine.models.latent import ChannelMoments, Posterior
from telecine.models.pretrained import CLASS_KEY, digest_of_encoder, save_model
from telecine.settings.autoencoder import FlowConfig

DENOISER_SIZES = {"tiny": (2, 4, 24), "small": (12, 6, 64), "base": (12, 12, 64)}
"""Layers, heads and features of a head. The last two are those of DiT-S and DiT-B (arXiv:2212.09748)."""
# Positions of a latent frame from which on 2 x 2 of them are a token.
_MANY_POSITIONS = 64
# Validations show latents from which noise of this level was removed, in one step.
_SHOWN_LEVEL = 0.5
# Levels of training: logit-normal, as figures of the probe compare only at the same ones.
_LEVELS = FlowConfig(shift=1.0, noise_fraction=0.0)


class LatentDenoiser(FrozenEncoderModel):
    """A transformer that learns to generate the latents of a frozen autoencoder, by flow matching (arXiv:2210.02747).

    In training, `forward` trains on latents, see `trains_on_latents`: it returns the denoised latent in place of video,
    with the weight and the target for which the objective's squared error is that of the velocity. In eval mode it
    returns the video of a latent from which noise of level 0.5 was removed in one step.

    The network is diffusers' `WanTransformer3DModel` with rotary positions in time, height and width, and one constant
    token in the place of a text. It is preconditioned (arXiv:2206.00364): inputs and targets have unit variance, and at
    the start the velocity is the best multiple of the noisy latent, which for white noise is the optimum.

    Args:
        model: The autoencoder, which is frozen in place. It must have `encode` and `decode`.
        latents: Some of its latents `(N, C, t, h, w)`. Those in training have their size, and each channel is
            normalised by their mean and standard deviation.
        size: A key of `DENOISER_SIZES`.
        causal: Whether a latent frame attends to itself and earlier frames alone.
    """

    trains_on_latents = True
    mean: Tensor
    std: Tensor

    def __init__(
        self, model: VideoAutoencoder, latents: Tensor, *, size: str = "tiny", causal: bool = False
    ) -> None:
        super().__init__()
        self.digest = digest_of_encoder(model)
        self._frozen = FrozenModule(model)
        self._settings: dict[str, Any] = {
            "size": size,
            "causal": causal,
            "latent_shape": list(latents.shape[1:]),
        }
        moments = ChannelMoments()
        moments.add(latents)
        statistics = moments.statistics()
        self.register_buffer("mean", torch.tensor(statistics.mean).view(1, -1, 1, 1, 1))
        self.register_buffer("std", torch.tensor(statistics.std).view(1, -1, 1, 1, 1))
        channels, num_frames, height, width = latents.shape[1:]
        has_many_positions = height * width >= _MANY_POSITIONS
        side = 2 if has_many_positions and height % 2 == 0 and width % 2 == 0 else 1
        num_layers, num_heads, head_dim = DENOISER_SIZES[size]
        transformer: Any = WanTransformer3DModel(
            patch_size=(1, side, side),
            num_layers=num_layers,
            num_attention_heads=num_heads,
            attention_head_dim=head_dim,
            in_channels=channels,
            out_channels=channels,
            text_dim=1,
            ffn_dim=4 * num_heads * head_dim,
        )
        self.transformer = transformer
        init_zero(transformer.proj_out)
        if causal:
            frames = torch.arange(num_frames).repeat_interleave(height * width // side**2)
            for block in transformer.blocks:
                block.attn1.set_processor(_CausalAttention(frames[:, None] >= frames))

    @property
    def encoder_model(self) -> VideoAutoencoder:
        """The frozen autoencoder, of whose latents this is a generator."""
        return self._frozen.in_eval_mode()

    def velocity(self, noisy: Tensor, noise_level: Tensor | float) -> Tensor:
        """Return the velocity, noise less latent, of normalised noisy latents `(B, C, t, h, w)` at levels `(B,)`."""
        noise_level = torch.as_tensor(noise_level).to(noisy).expand(len(noisy))
        t = noise_level.view(-1, 1, 1, 1, 1)
        variance = (1 - t).square() + t.square()
        text = noisy.new_zeros(len(noisy), 1, 1)
        output = self.transformer(
            noisy * variance.rsqrt(), 1000 * noise_level, text, return_dict=False
        )[0]
        return (2 * t - 1) / variance * noisy + variance.rsqrt() * output

    def predict_clean(self, noisy: Tensor, noise_level: Tensor) -> Tensor:
        """Return the clean normalised latents; see `velocity`."""
        return noisy - noise_level.view(-1, 1, 1, 1, 1) * self.velocity(noisy, noise_level)

    @torch.no_grad()
    def samples(self, num: int, steps: int, seed: int) -> Iterator[Tensor]:
        """Yield normalised latents `(1, C, t, h, w)`, each of other noise.

        Args:
            num: How many.
            steps: Steps of Euler's method.
            seed: Seed of the noise.
        """
        generator = torch.Generator().manual_seed(seed)
        levels = EulerSampler(steps=steps).levels(1.0)
        for _ in range(num):
            noise = torch.randn((1, *self._settings["latent_shape"]), generator=generator).to(
                self.mean
            )
            yield integrate(self.predict_clean, noise, levels)

    def normalised(self, latent: Tensor) -> Tensor:
        """Return latents of the autoencoder with mean 0 and variance 1 in each channel."""
        return (latent - self.mean) / self.std

    def decode(self, latent: Tensor, *, generator: Generators = None) -> Video:
        """Return the video of normalised latents, not clamped.

        Args:
            latent: `(B, C, t, h, w)`.
            generator: Not used: the frozen autoencoder decodes with the noise of its own `sampler`, if it has one.
        """
        return self.encoder_model.decode(latent * self.std + self.mean)

    def forward(
        self,
        video: Video,
        sample_posterior: bool = True,
        generator: Generators = None,
        posterior: Posterior | None = None,
    ) -> Reconstruction:
        """Return denoised latents in training, and a video in eval mode; see the class.

        Args:
            video: `(B, C, T, H, W)` in [-1, 1]; not read if a posterior is passed.
            sample_posterior: Not used: latents are the mode.
            generator: One generator, or one for each clip; PyTorch's default generator if None.
            posterior: The value of `encode(video)`, if it is cached.
        """
        if posterior is None:
            posterior = self.encode(video)
        latent = self.normalised(posterior.mode())
        if self.training:
            noise_level = random_levels(_LEVELS, latent, generator)
            noise = randn(latent.shape, generator=generator, device=latent.device)
        else:
            noise_level = latent.new_full((len(latent),), _SHOWN_LEVEL)
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(latent)
        denoised = self.predict_clean(add_noise(latent, noise, noise_level), noise_level)
        if not self.training:
            return Reconstruction(self.decode(denoised), {}, latent=denoised)
        scale = latent.abs().amax()  # the objective takes values in [-1, 1]
        return Reconstruction(
            denoised / scale, {}, weight=(scale / noise_level).square(), target=latent / scale
        )

    @property
    def in_channels(self) -> int:
        """Channels of the video."""
        return self.encoder_model.in_channels

    @property
    def codebook(self) -> None:
        """None: denoised latents have no codes."""

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the transformer's last layer."""
        return cast(nn.Parameter, self.transformer.proj_out.weight)

    def to_json_string(self) -> str:
        """Return the transformer's settings and the digest of the encoder, which a run keeps when it resumes."""
        return json.dumps(
            {CLASS_KEY: type(self).__name__, **self._settings, "encoder_sha256": self.digest}
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the transformer's settings and weights, and the statistics, without the autoencoder."""
        save_model(self, self._settings, folder)


class _CausalAttention(WanAttnProcessor):
    """Attention of tokens to the tokens of the same frame and of earlier frames."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __call__(self, attn: Any, hidden_states: Tensor, *others: Any) -> Tensor:
        encoder_hidden_states, _, rotary = others
        mask = self.mask.to(hidden_states.device)
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary)
