"""Autoencoders whose `forward` is encoding, sampling and decoding; their decoder may generate."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, randint, randn
from telecine.base.shapes import Video
from telecine.losses import AuxLosses
from telecine.models.flow import DecodingNoise
from telecine.models.interface import Reconstruction, VideoAutoencoder
from telecine.models.latent import Posterior
from telecine.models.unwrapping import class_name
from telecine.ops.pass_options import pass_options


class LatentAutoencoder(VideoAutoencoder):
    """An autoencoder whose `forward` is encoding, sampling and decoding."""

    sampler: DecodingNoise | None = None
    """How `decode` uses noise, for example an `EulerSampler`; None if the video is a function of the latent alone."""

    def forward(
        self,
        video: Video,
        sample_posterior: bool = True,
        generator: Generators = None,
        posterior: Posterior | None = None,
    ) -> Reconstruction:
        """Encode, sample (or take the mode) and decode; the graph is kept, and the losses of both parts are returned.

        Args:
            video: `(B, C, T, H, W)` in [-1, 1], of `in_channels` channels.
            sample_posterior: False decodes the mode of the posterior.
            generator: One generator, or one for each clip; PyTorch's default generator if None.
            posterior: The value of `encode(video)`, if it is cached.

        Raises:
            ValueError: The video does not fit, or the output has another size.
        """
        if posterior is None:
            posterior = self.encode(video)
        latent = posterior.sample(generator) if sample_posterior else posterior.mode()
        is_update = self.training and sample_posterior
        if is_update:
            latent = self._with_nested_channels(latent, generator)
        if is_update and self.sampler is not None:
            output = self.training_output(latent, video, generator)
        else:
            decoded, decoder_losses = self.decode_with_losses(latent)
            output = Reconstruction(decoded, {**decoder_losses})
        if output.video.shape != video.shape:
            contract = f"of the video's shape {tuple(video.shape)}"
            got = f"{tuple(output.video.shape)} from {class_name(self)}"
            remedy = (
                "It only reproduces smaller clips of this kind; report it with its configuration."
            )
            raise argument_error("the reconstruction", contract, got, remedy)
        losses = {**self.losses_of(posterior), **output.aux}
        for name, loss in losses.items():
            if isinstance(loss, Tensor):
                losses[name] = at_least_float32(loss)
        return output._replace(aux=losses, latent=latent)

    def losses_of(self, posterior: Posterior) -> AuxLosses:
        """Return the auxiliary losses of the latent by name."""
        return posterior.aux()

    def _with_nested_channels(self, latent: Tensor, generator: Generators) -> Tensor:
        """Return what is decoded of a latent in an update: for each clip a random one of `nested_channels`, or all."""
        if not self.nested_channels:
            return latent
        drawn = randint(
            1 + len(self.nested_channels),
            (len(latent), 1),
            generator=generator,
            device=latent.device,
        )
        num_kept = torch.full_like(drawn, latent.shape[1])
        for index, number in enumerate(self.nested_channels):
            num_kept = torch.where(drawn == index, number, num_kept)
        is_kept = torch.arange(latent.shape[1], device=latent.device) < num_kept
        return latent * is_kept[:, :, None, None, None]

    def training_output(
        self, latent: Tensor, video: Video, generator: Generators
    ) -> Reconstruction:
        """Return what a decoder with a `sampler` makes of a noisy video, or of a noisy latent, in an update.

        Args:
            latent: `(B, C, t, h, w)`.
            video: The clean video, `(B, C, T, H, W)`.
            generator: One generator, or one for each clip; PyTorch's default generator if None.

        Raises:
            NotImplementedError: A subclass with a `sampler` has to define it.
        """
        raise NotImplementedError

    def decode(self, latent: Tensor, *, generator: Generators = None) -> Video:
        """Return the video of a latent `(B, C, t, h, w)`, not clamped.

        Args:
            latent: The latent; it may have another height and width than in training.
            generator: Of a decoder with a `sampler`: one, or one for each clip, which draws its noise; None for the
                noise of `sampler`, which is the same for all clips.

        Raises:
            ValueError: The latent does not fit, or a decoder with a `sampler` has no generator in training.
        """
        raise NotImplementedError

    def decoding_noise(
        self, shape: Sequence[int], generator: Generators, device: torch.device
    ) -> Video:
        """Return the noise that `decode` starts from: drawn from a generator, or the noise of `sampler` without one.

        Args:
            shape: `(B, C, T, H, W)` of the video.
            generator: One generator, or one for each clip; None for the noise of `sampler`, the same for all clips.
            device: Where the noise is returned.

        Raises:
            ValueError: There is no generator while the model trains: it would learn one noise.
        """
        assert self.sampler is not None
        if generator is not None:
            return randn(shape, generator=generator, device=device)
        self.check_not_training()
        return self.sampler.noise(shape, pass_options().clip_position, device)

    def check_not_training(self) -> None:
        """Check that the model does not train, for a `decode` that takes the noise of `sampler`.

        Raises:
            ValueError: It does, with gradients.
        """
        if self.training and torch.is_grad_enabled():
            contract = "one or several generators in training, as this decoder draws noise"
            remedy = "Pass the update's generators, or call `eval()` for the noise of validation."
            raise argument_error("generator", contract, "none", remedy)

    def decode_with_losses(self, latent: Tensor) -> tuple[Video, dict[str, Tensor]]:
        """Return the video of a latent, and auxiliary losses of the decoder by name, 0-d."""
        return self.decode(latent), {}

    def describe_decoding(self) -> dict[str, object]:
        """Return the name, the steps or the level, and the seed of the sampler; empty without one."""
        return {} if self.sampler is None else self.sampler.describe()

    def set_decoding(self, **options: Any) -> None:
        """Change fields of the sampler.

        Raises:
            ValueError: There is no sampler, it does not use such a field, or its value is wrong.
        """
        super().set_decoding(**options)
        if self.sampler is not None:
            self.sampler = replace(self.sampler, **options)
