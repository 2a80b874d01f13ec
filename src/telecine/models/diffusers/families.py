"""The facts of each class of diffusers: how it is encoded and decoded with gradients, normalised, and streamed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.base.shapes import Video
from telecine.losses.perceptual.feature_maps import IMAGENET
from telecine.models.diffusers import row_splits, streams, wan
from telecine.models.diffusers.normalisation import Normalised
from telecine.models.diffusers.outputs import (
    UNSUPPORTED_REMEDY,
    Decoded,
    DiffusersModel,
    LatentPosterior,
    read_decoded,
    read_posterior,
)
from telecine.models.diffusers.row_splits import RowLayers
from telecine.models.diffusers.streams import Streaming
from telecine.models.latent import DeterministicPosterior, DiagonalGaussian
from telecine.ops.scaled_normalize import scaled_normalize

_Colours: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel in [0, 1], by which a model's colours are normalised."""
_BLACK_TO_WHITE: _Colours = ((0.0,), (1.0,))
# Classes are known by name, because the installed version of diffusers may lack some of them.
_AUDIO = "which is of audio"
_DIFFUSION = "whose decoder is a diffusion model: it learns to denoise, not to reconstruct"
_PROTEINS = "which is of proteins"
REFUSED = {
    "AutoencoderKLKVAEAudio": _AUDIO,
    "AutoencoderKLLTX2Audio": _AUDIO,
    "AutoencoderKLMiniMaxH3Audio": _AUDIO,
    "AutoencoderOobleck": _AUDIO,
    "AutoencoderSAME": _AUDIO,
    "ConsistencyDecoderVAE": _DIFFUSION,
    "Cosmos3AVAEAudioTokenizer": _AUDIO,
    "LongCatAudioDiTVae": _AUDIO,
    "MMAudioVAE": _AUDIO,
    "MMAudioVocoder": _AUDIO,
    "MiniMaxMusic3Vocoder": _AUDIO,
    "RFD4ProteinaAutoencoder": _PROTEINS,
}
"""Autoencoders that are not trained, with the reason."""
# Norms of channels with `scale`, `gamma` and `bias`, for which `scaled_normalize` stands in while a model trains.
RMS_NORMS = {
    "HunyuanImageRefinerRMS_norm",
    "HunyuanVideo15RMS_norm",
    "QwenImage21RMS_norm",
    "QwenImageRMS_norm",
    "WanRMS_norm",
}


def class_names(cls: type) -> list[str]:
    """Return the names of a class and of its base classes, the nearest first."""
    return [parent.__name__ for parent in cls.__mro__]


def _declared_channels(module: DiffusersModel) -> int:
    """Return the channels of a model's video, as its configuration says; 3 if it does not say."""
    config = getattr(module, "config", {})
    # Mochi's input has Fourier features as well, and some classes have one number for input and output.
    for name in ("out_channels", "in_channels", "input_channels"):
        if name in config:
            return config[name]
    return 3


def _unpatched_channels(module: DiffusersModel) -> int:
    """Return the channels of a model whose configuration counts those of patches."""
    patch_size = getattr(module.config, "patch_size", None) or 1
    return _declared_channels(module) // patch_size**2


def _colours_without_alpha(module: DiffusersModel) -> int:
    """Return 3: alpha is added and removed by the family."""
    return 3


@dataclass(frozen=True)
class Family:
    """The facts of a class of models: how they are called, what they keep, and what telecine does in their place."""

    encoder: Callable[..., LatentPosterior]
    """From the model and a video `(B, C, T, H, W)` in [-1, 1] to the posterior."""
    decoder: Callable[..., Decoded]
    """From the model and a latent `(B, C, t, h, w)`, and perhaps the level of its noise `(B,)`, to the video."""
    in_channels: Callable[[DiffusersModel], int] = _declared_channels
    """From the model to the channels of its video."""
    widens: Literal["no", "pixels", "patches"] = "pixels"
    """Whether the first and last layer can be widened to other channels: "no"; "pixels", if they see pixels; "patches",
    if they see patches whose values are ordered by channel."""
    colours: _Colours | None = None
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
        self, module: DiffusersModel, latent: Tensor, level: Tensor | None = None
    ) -> Decoded:
        """Return the video of a latent, not clamped, and losses; the model's caches are empty afterwards.

        Args:
            module: The model.
            latent: `(B, C, t, h, w)`.
            level: The level of noise of each latent, `(B,)`, for models that `takes_level`; by default 0.
        """
        latent = latent.to(next(module.parameters()).dtype)
        try:
            if level is None:
                video, losses = self.decoder(module, latent)
            else:
                video, losses = self.decoder(module, latent, level)
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


def check_class(name: str, cls: type) -> None:
    """Check that neither a class nor a base class is one of `REFUSED`.

    Raises:
        ValueError: One is; the message names the argument `name`.
    """
    for class_name in class_names(cls):
        if class_name in REFUSED:
            contract = "an autoencoder of images or video that reconstructs"
            raise argument_error(
                name, contract, f"{cls.__name__}, {REFUSED[class_name]}", "Use another model."
            )


def family_of(module: nn.Module) -> Family:
    """Return the facts of a model: of its class or a base class in `FAMILIES`; otherwise of frames if no weight is 3D.

    Raises:
        TypeError: The model has no `encode` or `decode`.
        ValueError: Its class is one of `REFUSED`.
    """
    check_class("module", type(module))
    for name in ("encode", "decode"):
        if not callable(getattr(module, name, None)):
            got = f"{type(module).__name__} without `{name}`"
            raise argument_error(
                "module", "a model with `encode` and `decode`", got, UNSUPPORTED_REMEDY, TypeError
            )
    for name in class_names(type(module)):
        if name in FAMILIES:
            return FAMILIES[name]
    if all(parameter.ndim < 5 for parameter in module.parameters()):
        return _OF_FRAMES
    return _OF_CLIPS


def _encode_clips(module: DiffusersModel, video: Video) -> LatentPosterior:
    return read_posterior(module.encode(video))


def takes_level(module: DiffusersModel) -> bool:
    """Return whether a decoder is told the level of noise of its latent, as LTX-Video's is from 0.9.1 on."""
    config = getattr(module, "config", None)
    return bool(getattr(config, "timestep_conditioning", False))


def _decode_clips(module: DiffusersModel, latent: Tensor, level: Tensor | None = None) -> Decoded:
    if not takes_level(module):
        return read_decoded(module.decode(latent))
    if level is None:
        level = latent.new_zeros(len(latent))
    return read_decoded(module.decode(latent, temb=level.to(latent.dtype)))


def _frames_from_clips(video: Video, as_clips: bool = False) -> Tensor:
    """Return the frames `(B*T, C, H, W)` of `(B, C, T, H, W)`; `as_clips` of one frame, `(B*T, C, 1, H, W)`."""
    frames = video.transpose(1, 2).flatten(0, 1)
    return frames[:, :, None] if as_clips else frames


def _clips_from_frames(frames: Tensor, batch: int) -> Video:
    """Return the clips `(B, C, T, H, W)` of frames `(B*T, C, H, W)` or `(B*T, C, 1, H, W)`."""
    return frames.flatten(1, -3).unflatten(0, (batch, -1)).transpose(1, 2)


def _encode_frames(
    module: DiffusersModel, video: Video, *, as_clips: bool = False
) -> LatentPosterior:
    posterior = read_posterior(module.encode(_frames_from_clips(video, as_clips)))
    if isinstance(posterior, DeterministicPosterior):
        return DeterministicPosterior(
            _clips_from_frames(posterior.latent, len(video)), posterior.losses
        )
    mean = _clips_from_frames(posterior.mean, len(video))
    logvar = _clips_from_frames(posterior.logvar, len(video))
    return DiagonalGaussian(mean=mean, logvar=logvar)


def _decode_frames(module: DiffusersModel, latent: Tensor) -> Decoded:
    frames, losses = read_decoded(module.decode(_frames_from_clips(latent)))
    return _clips_from_frames(frames, len(latent)), losses


def _decode_frames_together(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode the frames of clips, of which the decoder mixes `num_frames`."""
    frames, losses = read_decoded(
        module.decode(_frames_from_clips(latent), num_frames=latent.shape[2])
    )
    return _clips_from_frames(frames, len(latent)), losses


def _decode_rae(module: DiffusersModel, latent: Tensor) -> Decoded:
    # The class's decoder views height and width as one axis.
    return _decode_frames(module, latent.contiguous())


def _encode_allegro(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode whole clips; Allegro's own `encode` only works with tiles."""
    moments = module.quant_conv(_frames_from_clips(module.encoder(video)))
    mean, logvar = _clips_from_frames(moments, len(video)).chunk(2, dim=1)
    return DiagonalGaussian(mean=mean, logvar=logvar)


def _decode_allegro(module: DiffusersModel, latent: Tensor) -> Decoded:
    features = _clips_from_frames(module.post_quant_conv(_frames_from_clips(latent)), len(latent))
    return module.decoder(features), {}


def _encode_mean(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Return only the mean: the class returns a constant variance of 1, which it was not trained with."""
    return DeterministicPosterior(module.encode(video).latent_dist.mode())


def _encode_qwen21(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode each frame, with an opaque alpha channel added if the model has one."""
    if module.config.in_channels == 4:
        video = torch.cat([video, torch.ones_like(video[:, :1])], dim=1)
    return _encode_frames(module, video, as_clips=True)


def _decode_qwen21(module: DiffusersModel, latent: Tensor) -> Decoded:
    frames, losses = wan.decode(module, _frames_from_clips(latent, as_clips=True))
    return _clips_from_frames(frames, len(latent))[:, :3], losses


def _encode_vidtok(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode clips with copies of their first frame prepended, as the class's own `forward` does."""
    if module.is_causal:
        copies = video[:, :, :1].expand(-1, -1, module.temporal_compression_ratio - 1, -1, -1)
        video = torch.cat([copies, video], dim=2)
    return _encode_clips(module, video)


def _normalise(norm: DiffusersModel, x: Tensor) -> Tensor:
    """Return what a norm's own `forward` does, which runs where nothing is trained, or code is compiled."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return type(norm).forward(norm, x)
    normed = scaled_normalize(x, norm.scale * norm.gamma)
    if isinstance(norm.bias, Tensor):
        normed = normed + norm.bias
    return normed


_BLOCKS_OF_IMAGES = (
    "DownEncoderBlock2D",
    "AttnDownEncoderBlock2D",
    "UNetMidBlock2D",
    "UpDecoderBlock2D",
    "AttnUpDecoderBlock2D",
)
_OF_CLIPS = Family(_encode_clips, _decode_clips)
_OF_FRAMES = Family(_encode_frames, _decode_frames)
FAMILIES = {
    "AsymmetricAutoencoderKL": Family(
        _encode_frames,
        _decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=_BLOCKS_OF_IMAGES,
        leaves_weights_unused=True,
    ),
    "AutoencoderDC": Family(
        _encode_frames,
        _decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=("ResBlock", "EfficientViTBlock"),
    ),
    "AutoencoderKL": Family(_encode_frames, _decode_frames, normalised=Normalised.FACTOR),
    "AutoencoderKLAllegro": Family(
        _encode_allegro,
        _decode_allegro,
        first_frame_apart=False,
        normalised=Normalised.FACTOR,
    ),
    "AutoencoderKLCogVideoX": Family(
        _encode_clips,
        _decode_clips,
        normalised=Normalised.FACTOR,
        stream=streams.COGVIDEOX,
        row_layers=row_splits.COGVIDEOX,
    ),
    "AutoencoderKLCosmos": Family(_encode_clips, _decode_clips, normalised=Normalised.CHANNELS),
    "AutoencoderKLFlux2": Family(_encode_frames, _decode_frames, normalised=Normalised.BATCH_NORM),
    "AutoencoderKLHunyuanImage": Family(
        _encode_frames,
        _decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=("HunyuanImageResnetBlock", "HunyuanImageMidBlock"),
    ),
    "AutoencoderKLHunyuanImageRefiner": Family(
        _encode_clips, _decode_clips, normalised=Normalised.FACTOR
    ),
    "AutoencoderKLHunyuanVideo": Family(_encode_clips, _decode_clips, normalised=Normalised.FACTOR),
    "AutoencoderKLHunyuanVideo15": Family(
        _encode_clips,
        _decode_clips,
        normalised=Normalised.FACTOR,
        takes_one_clip=True,
    ),
    "AutoencoderKLKVAE": Family(_encode_frames, _decode_frames),
    "AutoencoderKLKVAEVideo": Family(
        _encode_mean,
        _decode_clips,
        checkpointed_blocks=(
            "KVAECachedResnetBlock3D",
            "KVAECachedPXSDownsample",
            "KVAECachedPXSUpsample",
        ),
        stream=streams.KVAE_VIDEO,
    ),
    "AutoencoderKLLTX2Video": Family(
        _encode_clips, _decode_clips, widens="patches", normalised=Normalised.BUFFERS
    ),
    "AutoencoderKLLTXVideo": Family(
        _encode_clips,
        _decode_clips,
        widens="patches",
        normalised=Normalised.BUFFERS,
        row_layers=row_splits.LTX,
    ),
    "AutoencoderKLMagvit": Family(
        _encode_clips,
        _decode_clips,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=(
            "EasyAnimateResidualBlock3D",
            "EasyAnimateDownsampler3D",
            "EasyAnimateUpsampler3D",
        ),
        stream=streams.MAGVIT,
    ),
    "AutoencoderKLMiniMaxH3": Family(
        _encode_clips,
        _decode_clips,
        widens="no",
        colours=IMAGENET,
        normalised=Normalised.CHANNELS,
    ),
    "AutoencoderKLMochi": Family(_encode_clips, _decode_clips, normalised=Normalised.CHANNELS),
    "AutoencoderKLQwenImage": Family(
        wan.encode,
        wan.decode,
        normalised=Normalised.CHANNELS,
        checkpointed_blocks=(
            "QwenImageResidualBlock",
            "QwenImageAttentionBlock",
            "QwenImageResample",
        ),
        stream=streams.WAN,
    ),
    "AutoencoderKLQwenImage21": Family(
        _encode_qwen21,
        _decode_qwen21,
        in_channels=_colours_without_alpha,
        widens="no",
        normalised=Normalised.CHANNELS,
        checkpointed_blocks=(
            "QwenImage21ResidualBlock",
            "QwenImage21AttentionBlock",
            "QwenImage21Resample",
        ),
        leaves_weights_unused=True,
    ),
    "AutoencoderKLTemporalDecoder": Family(
        _encode_frames, _decode_frames_together, normalised=Normalised.FACTOR
    ),
    "AutoencoderKLWan": Family(
        wan.encode,
        wan.decode,
        in_channels=_unpatched_channels,
        widens="patches",
        normalised=Normalised.CHANNELS,
        checkpointed_blocks=("WanResidualBlock", "WanAttentionBlock", "WanResample"),
        stream=streams.WAN,
        row_layers=row_splits.WAN,
    ),
    "AutoencoderRAE": Family(
        _encode_frames,
        _decode_rae,
        widens="no",
        colours=_BLACK_TO_WHITE,
        only_side="decoder_image_size",
        normalised=Normalised.INSIDE,
        checkpointed_blocks=("ViTMAELayer",),
    ),
    "AutoencoderTiny": Family(
        _encode_frames,
        _decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=("AutoencoderTinyBlock",),
    ),
    "AutoencoderVidTok": Family(_encode_vidtok, _decode_clips, first_frame_apart="is_causal"),
    "Kandinsky6SRVAE": Family(
        _encode_clips,
        _decode_clips,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=(
            "Kandinsky6SRResnetBlock3D",
            "Kandinsky6SRDownsample",
            "Kandinsky6SRUpsample",
        ),
        stream=streams.KANDINSKY_6_SR,
    ),
    "VQModel": Family(
        _encode_frames,
        _decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=_BLOCKS_OF_IMAGES,
        leaves_weights_unused=True,
    ),
}
"""All classes of diffusers that are trained, beside the decoder in `diffusion_decoder`."""


def prepare_for_training(module: DiffusersModel, family: Family) -> None:
    """Disable tiles, which change outputs and gradients, and slices of the batch; set faster norms and whole clips."""
    for layer in module.modules():
        if type(layer).__name__ in RMS_NORMS and layer.channel_first:
            layer.forward = partial(_normalise, layer)
        if hasattr(layer, "time_conv"):
            wan.enable_whole_clips(layer)
    for flag in ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding"):
        if hasattr(module, flag):
            setattr(module, flag, False)
    if family.takes_one_clip:
        module.enable_slicing()
