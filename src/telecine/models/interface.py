"""The interface between autoencoders and the rest of the library: `VideoAutoencoder` and its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from typing_extensions import Self

from telecine.base.checks import argument_error
from telecine.base.randomness import Generators
from telecine.base.shapes import Video, check_video
from telecine.losses import AuxLosses
from telecine.models.bottleneck import Bottleneck
from telecine.models.latent import (
    LatentGrid,
    LatentStatistics,
    Normalisation,
    Posterior,
)
from telecine.models.linear import LinearAutoencoder
from telecine.models.row_split import RowSplit
from telecine.models.stream import StreamDecoder, StreamEncoder
from telecine.models.unwrapping import class_name
from telecine.ops.pass_options import ClipPosition as ClipPosition  # pickled models name it here
from telecine.settings import Bucket, CausalVAEConfig, ClipConfig
from telecine.settings.data import channels_named


class Reconstruction(NamedTuple):
    """Output of one forward pass."""

    video: Video
    """The reconstruction, of the input's shape; near [-1, 1] but not clamped, so that no gradient is cut off."""
    aux: AuxLosses
    """Auxiliary losses by name, which the objective multiplies by a weight: 0-d and float32, or the `Moments` of a
    posterior, e.g. `{"kl_loss": moments}`, whose KL divergence the objective computes as its `nll_reduction` says."""
    latent: Tensor | None = None
    """The decoded latent, `(B, C, t, h, w)` in at least float32, with its graph: the posterior's sample or mode. None
    if the model does not return it; terms of the loss that read the latent then raise an error."""
    weight: Tensor | None = None
    """The weight of each clip's reconstruction and perceptual errors, `(B,)`; None for 1."""
    target: Video | None = None
    """What the reconstruction is compared with, of its shape and without a graph; None for the input."""


class VideoAutoencoder(nn.Module, ABC):
    """An autoencoder for video `(B, C, T, H, W)` in [-1, 1], as training and evaluation call it.

    `as_video_autoencoder` wraps other modules. Subclass this only to control every method. A subclass has to define
    `forward`, `last_layer`, `check_clip`, `covering_clip`, `save_pretrained` and `load_weights`.
    """

    trains_on_latents: bool = False
    """Whether `video` and `target` of the output are latents in training. An update then reads only the posterior of
    the clips if that is cached, and no video."""
    leaves_weights_unused: bool = False
    """Whether updates leave some weights without a gradient, for which DDP would wait."""
    nested_channels: tuple[int, ...] = ()
    """Numbers of leading channels to which a latent may be cut before `decode`."""
    _kept_in_eval_mode: Sequence[nn.Module] = ()

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
            posterior: The value of `encoder_model.encode(video)`, if it is cached: the encoder does not run again.

        Raises:
            ValueError: The video does not fit, or the output has another size.
        """

    if TYPE_CHECKING:
        __call__ = forward  # `nn.Module.__call__` is untyped

    def keep_in_eval_mode(self, modules: Iterable[nn.Module]) -> None:
        """Let modules inside of this one stay in evaluation mode whenever this one is switched to training mode."""
        self._kept_in_eval_mode = list(modules)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation mode, but for the modules of `keep_in_eval_mode`."""
        super().train(mode)
        for module in self._kept_in_eval_mode:
            module.eval()
        return self

    @property
    def in_channels(self) -> int:
        """Channels of the video and of its reconstruction; by default 3, RGB."""
        return 3

    @property
    def first_frame_apart(self) -> bool:
        """Whether the first latent frame encodes the first frame alone; true by default, as for causal models."""
        return True

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last layer, where the adaptive weight compares gradients."""

    @abstractmethod
    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Check that the reconstruction of such a clip has the same size.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.

        Raises:
            ValueError: It has another size; the message has the nearest accepted value.
        """

    @abstractmethod
    def covering_clip(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest (frames, height, width) that `check_clip` accepts and that is at least this large.

        Args:
            num_frames: Frames of the clip.
            height: Height in pixels.
            width: Width in pixels.
        """

    @abstractmethod
    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write configuration and weights into `folder`, with LoRA adapters merged into the weights."""

    @abstractmethod
    def load_weights(self, folder: str | PathLike[str]) -> Self:
        """Copy the weights that `save_pretrained` wrote into this model, and return it; its device and dtype stay.

        Raises:
            FileNotFoundError: There are no weights.
            ValueError: They are damaged, or names or shapes differ from the model's.
        """

    @property
    def encoder_model(self) -> VideoAutoencoder:
        """The autoencoder whose encoder computes the latent that is decoded: by default this one."""
        return self

    @property
    def decoder_model(self) -> VideoAutoencoder:
        """The autoencoder whose decoder makes the video: by default this one."""
        return self

    def encode(self, video: Video) -> Posterior:
        """Return the posterior of `(B, C, T, H, W)`, with a latent `(B, C, t, h, w)` in float32 at least.

        Raises:
            ValueError: The video does not fit, or the model cannot encode by itself, which is the default.
        """
        remedy = "Leave out what needs the encoder alone."
        raise argument_error(
            "encode", "a method of the model", f"{type(self).__name__} without it", remedy
        )

    def decode(self, latent: Tensor) -> Video:
        """Return the video of a latent `(B, C, t, h, w)`, not clamped; the latent may have another height and width.

        Raises:
            ValueError: The latent does not fit, or the model cannot decode by itself, which is the default.
        """
        remedy = (
            "Give the module a method `decode(latent)`, or leave out what decodes a changed latent."
        )
        raise argument_error(
            "decode", "a method of the model", f"{type(self).__name__} without it", remedy
        )

    def describe_decoding(self) -> dict[str, object]:
        """Return how `decode` samples, for protocols, with the present value of each option of `set_decoding`.

        Empty, the default, if the decoder is a function of the latent. A decoder that generates returns for example
        `{"name": "euler", "steps": 1, "seed": 0}`.
        """
        return {}

    def set_decoding(self, **options: Any) -> None:
        """Change options of `decode`: `steps`, `seed` or `level`, as `describe_decoding` has them; by default none.

        Raises:
            ValueError: The decoder does not have such an option, or its value is wrong.
        """
        present = self.describe_decoding()
        for name in options:
            if name not in present:
                kind = "removes noise from its latent" if name == "level" else "generates"
                contract = f"left out for {type(self).__name__} without a decoder that {kind}"
                raise argument_error(f"decode_{name}", contract, options[name])

    def validation_decodings(self) -> dict[str, dict[str, Any]]:
        """Return other options of `decode` that validations measure, too, by the suffix of the metrics' names.

        Empty by default. A decoder that generates returns for example `{"4_steps": {"steps": 4}}`.
        """
        return {}

    def use_training_settings(self, settings: CausalVAEConfig) -> None:
        """Take over settings of training that a saved model does not hold; by default there are none."""

    def with_channels(self, in_channels: int) -> VideoAutoencoder:
        """Return this model for other channels, see `change_channels`.

        Raises:
            ValueError: The model cannot have other channels, which is the default.
        """
        raise self._channels_error(in_channels)

    def _channels_error(self, in_channels: int) -> Exception:
        contract = f"{self.in_channels} for {class_name(self)}"
        remedy = "Use a CausalVAE or a model of diffusers for other numbers."
        return argument_error("clips.channels", contract, in_channels, remedy)

    def latent_grid(self, num_frames: int, height: int, width: int) -> LatentGrid | None:
        """Return how the latent divides clips of a size; None, the default, if that is not known or is not even.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
        """
        return None

    def row_split(self) -> RowSplit | None:
        """Return how several processes share a clip, see `split_over_processes`; None, the default, if they cannot."""
        return None

    def linear_autoencoder(
        self, num_frames: int, height: int, width: int
    ) -> LinearAutoencoder | None:
        """Return an unfitted linear autoencoder with this latent for such clips; None without a `latent_grid`.

        Args:
            num_frames: Frames of the clips.
            height: Height in pixels.
            width: Width in pixels.
        """
        grid = self.latent_grid(num_frames, height, width)
        if grid is None:
            return None
        return LinearAutoencoder(**grid._asdict(), in_channels=self.in_channels)

    @property
    def codebook(self) -> Bottleneck | None:
        """The discrete bottleneck that numbers the codes of the latent; None, the default, if it has none."""
        return None

    def latent_normalisation(self) -> Normalisation:
        """Return the numbers that normalise the latent in saved configurations, by name; by default there are none."""
        return {}

    def set_latent_statistics(self, statistics: LatentStatistics) -> None:
        """Replace the numbers that `latent_normalisation` returns; a model without any ignores them, as by default."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass to save memory.

        Raises:
            ValueError: The model does not support it, which is the default.
        """
        remedy = "Set it to false, or give the model a method `enable_gradient_checkpointing`."
        contract = "false for a model without gradient checkpointing"
        raise argument_error(
            "model_gradient_checkpointing", contract, f"true for {class_name(self)}", remedy
        )

    def stream_encoder(self, num_frames: int | None = None) -> StreamEncoder:
        """Return a stream that encodes a video of any length, a few frames at a time, as if it were whole.

        Args:
            num_frames: The most frames that are computed at once, as far as the class has a choice. Default: as few as
                it supports.

        Raises:
            ValueError: The class keeps no frames between chunks, which is the default.
        """
        raise self._streams_error("stream_encoder")

    def stream_decoder(self, num_frames: int | None = None) -> StreamDecoder:
        """Return a stream that decodes a latent of any length, a few frames at a time, as if it were whole.

        A decoder that draws noise takes the stream's first frame from `clip_position`, in which the stream is made.

        Args:
            num_frames: The most frames of the video that are computed at once, as for `stream_encoder`.

        Raises:
            ValueError: The class keeps no frames between chunks, which is the default.
        """
        raise self._streams_error("stream_decoder")

    @property
    def streams(self) -> bool:
        """Whether `stream_encoder` and `stream_decoder` are supported, as the class declares."""
        return False

    def _streams_error(self, name: str) -> Exception:
        contract = "called for a model that keeps frames between chunks"
        remedy = (
            "Encode and decode whole clips, or use `telecine reconstruct`, which blends chunks."
        )
        return argument_error(name, contract, f"a {class_name(self)}", remedy)

    @property
    def smallest_temporal_chunk(self) -> int | None:
        """The fewest frames that `enable_temporal_chunks` accepts; None, the default, if it is not supported."""
        return None

    def enable_temporal_chunks(self, num_frames: int) -> None:
        """Compute clips in chunks of `num_frames` frames, with the activations of one chunk in memory at a time.

        The results, and in the backward pass the gradients, equal those of whole clips.

        Raises:
            ValueError: The model does not support it, which is the default, or not this number of frames.
        """
        raise self._chunks_error()

    def _chunks_error(self) -> Exception:
        remedy = "Leave it out and use `model_gradient_checkpointing` or shorter clips"
        remedy += ", or give the model a method `enable_temporal_chunks`."
        contract = "left out for a model that does not keep frames between chunks"
        return argument_error(
            "temporal_chunk", contract, f"a number for {class_name(self)}", remedy
        )


@contextmanager
def decoding_options(model: VideoAutoencoder, **options: Any) -> Iterator[None]:
    """Change options of a model's `decode` inside a `with`, see `VideoAutoencoder.set_decoding`."""
    present = model.describe_decoding()
    before = {name: present[name] for name in options if name in present}
    model.set_decoding(**options)
    try:
        yield
    finally:
        model.set_decoding(**before)


def check_input(model: VideoAutoencoder, video: Video) -> None:
    """Check that `video` has the model's channels and a size that it accepts.

    Raises:
        ValueError: It does not.
    """
    check_video("video", video)
    if video.shape[1] != model.in_channels:
        kind = "RGB " if model.in_channels == 3 else ""
        contract = f"{kind}of shape (B, {model.in_channels}, T, H, W)"
        raise argument_error("video", contract, video, "Use a model of these channels.")
    model.check_clip(*video.shape[2:])


def check_channels(config: ClipConfig, model: VideoAutoencoder) -> None:
    """Check that clips have the channels of a model.

    Raises:
        ValueError: They do not.
    """
    if config.num_channels != model.in_channels:
        contract = f"one of {model.in_channels} channels, as the model has"
        remedy = (
            f"Set `--clips.channels {channels_named(model.in_channels)}`, or for telecine's own model "
            f"`--causal_vae.in_channels {config.num_channels}`."
        )
        raise argument_error("clips.channels", contract, f'"{config.channels}"', remedy)


def check_buckets(buckets: Sequence[Bucket], model: VideoAutoencoder, *, images: bool) -> None:
    """Check that a model accepts clips of all sizes.

    Args:
        buckets: The sizes of clips.
        model: The autoencoder.
        images: Whether single frames of these sizes have to be accepted, too.

    Raises:
        ValueError: It does not accept a size; the message has the next larger size that it accepts.
    """
    sizes = [("a clip", bucket) for bucket in buckets]
    if images:
        sizes += [("an image", bucket.as_image()) for bucket in buckets]
    for kind, size in sizes:
        try:
            model.check_clip(*size.shape)
        except ValueError as error:
            covering = "x".join(map(str, model.covering_clip(*size.shape)))
            remedy = f"{error} The next larger accepted size is {covering}."
            raise argument_error(
                "clips", "of sizes that the model accepts", f"{kind} of {size}", remedy
            ) from error
