"""The interface between autoencoders and the rest of the library: `VideoAutoencoder` and its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.precision import at_least_float32
from telecine.base.randomness import Generators, randint
from telecine.base.shapes import Video, check_video
from telecine.models.bottleneck import Bottleneck
from telecine.models.flow import Sampler
from telecine.models.latent import LatentStatistics, Normalisation, Posterior
from telecine.models.linear import LinearAutoencoder
from telecine.settings import Bucket, ClipConfig
from telecine.settings.autoencoder import FlowConfig


class Reconstruction(NamedTuple):
    """Output of one forward pass."""

    video: Video
    """The reconstruction, of the input's shape; near [-1, 1] but not clamped, so that no gradient is cut off."""
    aux: dict[str, Tensor]
    """Auxiliary losses by name, 0-d and float32, e.g. `{"kl_loss": ...}`. The objective multiplies them by a weight."""
    latent: Tensor | None = None
    """The decoded latent, `(B, C, t, h, w)` in at least float32, with its graph: the posterior's sample or mode. None
    if the model does not return it; terms of the loss that read the latent then raise an error."""
    weight: Tensor | None = None
    """The weight of each clip's reconstruction and perceptual errors, `(B,)`; None for 1."""
    target: Video | None = None
    """What the reconstruction is compared with, of its shape and without a graph; None for the input."""


class VideoAutoencoder(nn.Module, ABC):
    """An autoencoder for video `(B, C, T, H, W)` in [-1, 1], as training and evaluation call it.

    `as_video_autoencoder` wraps other modules. Subclass this only to control every method.
    """

    sampler: Sampler | None = None
    """How `decode` samples video from noise, which the caller may change; None if it is a function of the latent."""
    flow: FlowConfig | None = None
    """The random levels of noise in training, which the caller may change; None without, or by the configuration."""
    trains_on_latents: bool = False
    """Whether an update needs only the posterior of the clips, where it is known, and not the video."""

    leaves_weights_unused: bool = False
    """Whether updates leave some weights without a gradient, for which DDP would wait."""
    nested_channels: tuple[int, ...] = ()
    """Numbers of leading channels to which a latent may be cut before `decode`."""

    @abstractmethod
    def forward(
        self,
        video: Video,
        sample_posterior: bool = True,
        generator: Generators = None,
        posterior: Posterior | None = None,
    ) -> Reconstruction:
        """Encode, sample and decode in one call, because DDP only synchronises gradients of its `forward`.

        Args:
            video: `(B, C, T, H, W)` in [-1, 1], of `in_channels` channels.
            sample_posterior: False uses the mode of the posterior, as validation does.
            generator: One generator, or one for each clip; PyTorch's default generator if None.
            posterior: The value of `latent_model.encode(video)`, if known: the encoder does not run again.

        Raises:
            ValueError: The video does not fit, or the output has another size.
        """

    if TYPE_CHECKING:
        __call__ = forward  # `nn.Module.__call__` is untyped

    @property
    def in_channels(self) -> int:
        """Channels of the video and of its reconstruction; by default 3, RGB."""
        return 3

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last layer, where the adaptive weight compares gradients."""

    @abstractmethod
    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise a `ValueError` with the nearest accepted value unless the output has the same size as such a clip."""

    @abstractmethod
    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, height, width) that `check_clip` accepts and that is at least this large."""

    @abstractmethod
    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write configuration and weights into `folder`, with low-rank updates merged into the weights."""

    @abstractmethod
    def load_weights(self, folder: str | PathLike[str]) -> None:
        """Copy the weights that `save_pretrained` wrote into this model, to resume a run; its device and dtype stay.

        Raises:
            FileNotFoundError: There are no weights.
            ValueError: They are damaged, or names or shapes differ from the model's.
        """

    @property
    def latent_model(self) -> VideoAutoencoder:
        """The autoencoder whose encoder gives the latent that is decoded: by default this one."""
        return self

    def encode(self, video: Video) -> Posterior:
        """Return the posterior of `(B, C, T, H, W)`, with a latent `(B, C, t, h, w)` in float32 at least.

        A `ValueError` says that the video does not fit, or that the model cannot encode by itself, the default.
        """
        remedy = "Leave out what needs the encoder alone."
        raise argument_error("encode", "a method of the model", f"{type(self).__name__} without it", remedy)

    def decode(self, latent: Tensor) -> Video:
        """Return the video of a latent `(B, C, t, h, w)`, not clamped; the latent may have another height and width.

        A `ValueError` says that the latent does not fit, or that the model cannot decode by itself, the default.
        """
        remedy = "Give the module a method `decode(latent)`, or leave out what decodes a changed latent."
        raise argument_error("decode", "a method of the model", f"{type(self).__name__} without it", remedy)

    def with_channels(self, in_channels: int) -> VideoAutoencoder:
        """Return this model for other channels, see `change_channels`; by default it raises a `ValueError`."""
        contract, got = f"of {self.in_channels} channels for {_name(self)}", f"of {in_channels}"
        raise argument_error("clips.channels", contract, got, "Use a CausalVAE or a model of diffusers for others.")

    def linear_autoencoder(self, num_frames: int, height: int, width: int) -> LinearAutoencoder | None:
        """Return an unfitted linear autoencoder with this latent for such clips; by default None: there is none."""
        return None

    @property
    def codebook(self) -> Bottleneck | None:
        """The discrete bottleneck that numbers the codes of the latent; None, the default, if it has none."""
        return None

    def latent_normalisation(self) -> Normalisation:
        """Return the numbers that normalise the latent in saved configurations, by name; by default there are none."""
        return {}

    def set_latent_statistics(self, statistics: LatentStatistics) -> None:
        """Replace these numbers, in the form that the model has; by default nothing happens."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass to save memory; by default it raises a `ValueError`."""
        remedy = "Set it to false, or give the model a method `enable_gradient_checkpointing`."
        contract, got = "false for a model without gradient checkpointing", f"true for {_name(self)}"
        raise argument_error("model_gradient_checkpointing", contract, got, remedy)

    @property
    def smallest_temporal_chunk(self) -> int | None:
        """The fewest frames that `enable_temporal_chunks` accepts; None, the default, if it is not supported."""
        return None

    def enable_temporal_chunks(self, num_frames: int) -> None:
        """Compute clips in chunks of `num_frames` frames, with the activations of one chunk in memory at a time.

        The results, and in the backward pass the gradients, are those of whole clips. A `ValueError` says that the
        model does not support it, the default, or not this number of frames.
        """
        remedy = "Leave it out and use `model_gradient_checkpointing` or shorter clips"
        remedy += ", or give the model a method `enable_temporal_chunks`."
        contract = "left out for a model that does not keep frames between chunks"
        raise argument_error("temporal_chunk", contract, f"a number for {_name(self)}", remedy)


@contextmanager
def sampling(model: VideoAutoencoder, **changes: Any) -> Iterator[None]:
    """Change fields of a model's `sampler` inside a `with`; a model without one stays as it is."""
    before = model.sampler
    model.sampler = None if before is None else replace(before, **changes)
    try:
        yield
    finally:
        model.sampler = before


class LatentAutoencoder(VideoAutoencoder):
    """An autoencoder whose `forward` is encoding, sampling and decoding."""

    def forward(
        self,
        video: Video,
        sample_posterior: bool = True,
        generator: Generators = None,
        posterior: Posterior | None = None,
    ) -> Reconstruction:
        """Encode, sample (or take the mode) and decode; the graph is kept, and the losses are those of the two."""
        posterior = posterior or self.encode(video)
        latent = posterior.sample(generator) if sample_posterior else posterior.mode()
        denoised = None
        if self.training and sample_posterior:
            latent = self._with_nested_channels(latent, generator)
            denoised = None if self.sampler is None else self.denoise(latent, video, generator)
        output = denoised or Reconstruction(*self.decode_with_losses(latent))
        if output.video.shape != video.shape:
            contract = f"of the video's shape {tuple(video.shape)}"
            got = f"{tuple(output.video.shape)} from {_name(self)}"
            remedy = "It only reproduces smaller clips of this kind; report it with its configuration."
            raise argument_error("the reconstruction", contract, got, remedy)
        losses = {**self.losses_of(posterior), **output.aux}
        return output._replace(aux={name: at_least_float32(loss) for name, loss in losses.items()}, latent=latent)

    def losses_of(self, posterior: Posterior) -> dict[str, Tensor]:
        """Return the auxiliary losses of the latent by name, 0-d."""
        return posterior.aux()

    def _with_nested_channels(self, latent: Tensor, generator: Generators) -> Tensor:
        """Return what is decoded of a latent in an update: for each clip a random one of `nested_channels`, or all."""
        if not self.nested_channels:
            return latent
        drawn = randint(1 + len(self.nested_channels), (len(latent), 1), generator=generator, device=latent.device)
        kept = torch.full_like(drawn, latent.shape[1])
        for index, number in enumerate(self.nested_channels):
            kept = torch.where(drawn == index, number, kept)
        is_kept = torch.arange(latent.shape[1], device=latent.device) < kept
        return latent * is_kept[:, :, None, None, None]

    def denoise(self, latent: Tensor, video: Video, generator: Generators) -> Reconstruction:
        """Return what a decoder with a `sampler` makes of a noisy video, or of a noisy latent, in an update."""
        raise NotImplementedError

    def decode_with_losses(self, latent: Tensor) -> tuple[Video, dict[str, Tensor]]:
        """Return the video of a latent, and auxiliary losses of the decoder by name, 0-d."""
        return self.decode(latent), {}


def check_input(model: VideoAutoencoder, video: Video) -> None:
    """Raise a `ValueError` unless `video` has the model's channels and a size that it accepts."""
    check_video("video", video)
    if video.shape[1] != model.in_channels:
        kind = "RGB " if model.in_channels == 3 else ""
        contract, remedy = f"{kind}of shape (B, {model.in_channels}, T, H, W)", "Use a model of these channels."
        raise argument_error("video", contract, video, remedy)
    model.check_clip(*video.shape[2:])


def check_channels(config: ClipConfig, model: VideoAutoencoder) -> None:
    """Raise a `ValueError` unless clips have the channels of a model."""
    if config.num_channels != model.in_channels:
        contract, got = f"one of {model.in_channels} channels, as the model has", f'"{config.channels}"'
        remedy = f"Use a model with `in_channels` {config.num_channels}, or clips as the model has."
        raise argument_error("clips.channels", contract, got, remedy)


def check_buckets(buckets: Sequence[Bucket], model: VideoAutoencoder, *, images: bool) -> None:
    """Raise a `ValueError` for a size that a model does not accept; with `images`, check single frames, too."""
    single_frames = [("an image", bucket.as_image()) for bucket in buckets if images]
    for kind, size in [*(("a clip", bucket) for bucket in buckets), *single_frames]:
        try:
            model.check_clip(*size.shape)
        except ValueError as error:
            covering = "x".join(map(str, model.covering_clip(*size.shape)))
            remedy = f"{error} The next larger accepted size is {covering}."
            raise argument_error("clips", "of sizes that the model accepts", f"{kind} of {size}", remedy) from error


def _name(model: nn.Module) -> str:
    return type(getattr(model, "module", model)).__name__
