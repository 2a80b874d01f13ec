"""The facts of one class of diffusers, by which the library calls its models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from telecine.base.shapes import Video
from telecine.models.diffusers.normalisation import Normalised
from telecine.models.diffusers.outputs import Decoded, DiffusersModel, LatentPosterior
from telecine.models.diffusers.row_layers import RowLayers
from telecine.models.diffusers.streams import Streaming

Colours: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel in [0, 1], by which a model's colours are normalised."""


def class_names(cls: type) -> list[str]:
    """Return the names of a class and of its base classes, the nearest first."""
    return [parent.__name__ for parent in cls.__mro__]


def declared_channels(module: DiffusersModel) -> int:
    """Return the channels of a model's video, as its configuration says; 3 if it does not say."""
    config = getattr(module, "config", {})
    # Mochi's input has Fourier features as well, and some classes have one number for input and output.
    for name in ("out_channels", "in_channels", "input_channels"):
        if name in config:
            return config[name]
    return 3


def unpatched_channels(module: DiffusersModel) -> int:
    """Return the channels of a model whose configuration counts the channels of patches."""
    patch_size = getattr(module.config, "patch_size", None) or 1
    return declared_channels(module) // patch_size**2


def colours_without_alpha(module: DiffusersModel) -> int:
    """Return 3: alpha is added and removed by the family."""
    return 3


@dataclass(frozen=True)
class Family:
    """The facts of a class of models: how they are called, what they keep, and what telecine does in their place."""

    encoder: Callable[..., LatentPosterior]
    """From the model and a video `(B, C, T, H, W)` in [-1, 1] to the posterior."""
    decoder: Callable[..., Decoded]
    """From the model and a latent `(B, C, t, h, w)`, and perhaps the level of its noise `(B,)`, to the video."""
    in_channels: Callable[[DiffusersModel], int] = declared_channels
    """From the model to the channels of its video."""
    changes_channels: Literal["no", "pixels", "patches"] = "pixels"
    """Whether the first and the last layer can be changed for other channels: "no"; "pixels", if they map pixels;
    "patches", if they map patches, whose values are ordered by channel."""
    colours: Colours | None = None
    """How colours are normalised, if the model does not see [-1, 1]."""
    only_side: str | None = None
    """The model's attribute with the height and width of the only frames that it reconstructs; None for any size."""
    first_frame_apart: bool | str = True
    """Whether a latent frame belongs to the first frame alone, or the model's attribute that says so."""
    normalised: Normalised = Normalised.NONE
    """How pipelines normalise the latent."""
    checkpointed_blocks: tuple[str, ...] = ()
    """The classes of blocks that telecine computes again in the backward pass, where the model's own gradient
    checkpointing is missing, does not support frames that are kept for the next chunk, or, for AutoencoderTiny, leaves
    out the conversion of colours to [0, 1]. Without any, the model's own is used."""
    stream: Streaming | None = None
    """How frames are kept from one chunk of a clip to the next; None if the model keeps none."""
    row_layers: RowLayers | None = None
    """The layers with which several processes share a clip; None if they cannot."""
    takes_one_clip: bool = False
    """Whether clips pass one by one, as the attention of the model supports no more."""
    leaves_weights_unused: bool = False
    """Whether some weights get no gradient from clips of several frames: weights for masks, weights that mix frames, or
    codes whose loss has no weight."""

    def encode(self, module: DiffusersModel, video: Video) -> LatentPosterior:
        """Return the posterior of `(B, C, T, H, W)` in [-1, 1]; the model's caches are empty afterwards."""
        video = video.to(next(module.parameters()).dtype)
        if self.colours is not None:
            mean, std = video.new_tensor(self.colours).view(2, 1, -1, 1, 1, 1)
            video = ((video + 1) / 2 - mean) / std
        try:
            return self.encoder(module, video)
        finally:
            clear_caches(module)

    def decode(
        self, module: DiffusersModel, latent: Tensor, noise_level: Tensor | None = None
    ) -> Decoded:
        """Return the video of a latent, not clamped, and losses; the model's caches are empty afterwards.

        Args:
            module: The model.
            latent: `(B, C, t, h, w)`.
            noise_level: The level of noise of each latent, `(B,)`, for models that `takes_level`; by default 0.
        """
        latent = latent.to(next(module.parameters()).dtype)
        try:
            if noise_level is None:
                video, losses = self.decoder(module, latent)
            else:
                video, losses = self.decoder(module, latent, noise_level)
        finally:
            clear_caches(module)
        if self.colours is not None:
            mean, std = video.new_tensor(self.colours).view(2, 1, -1, 1, 1, 1)
            video = (video * std + mean) * 2 - 1
        return video, losses

    def encode_mode(self, module: DiffusersModel, video: Video) -> Tensor:
        """Return the mode of the posterior, `(B, C, t, h, w)`."""
        return self.encode(module, video).mode()

    def reconstruct(self, module: DiffusersModel, video: Video) -> Video:
        """Return the reconstruction from the mode of the posterior."""
        return self.decode(module, self.encode_mode(module, video))[0]


def clear_caches(module: DiffusersModel) -> None:
    """Clear the frames that a model caches between chunks: they keep the graph alive, and are wrong after an error."""
    if hasattr(module, "clear_cache"):
        module.clear_cache()
    if hasattr(module, "_clear_conv_cache"):
        module._clear_conv_cache()
    if hasattr(module, "_empty_causal_cached"):  # of VidTok
        module._empty_causal_cached(module)
