"""The classes of diffusers that are trained, each with its facts, and those that are refused."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from telecine.base.checks import argument_error
from telecine.losses.perceptual.feature_maps import IMAGENET
from telecine.models.diffusers import row_layers, streams, wan
from telecine.models.diffusers.calls import (
    decode_allegro,
    decode_clips,
    decode_frames,
    decode_frames_together,
    decode_qwen21,
    decode_rae,
    encode_allegro,
    encode_clips,
    encode_frames,
    encode_mean,
    encode_qwen21,
    encode_vidtok,
)
from telecine.models.diffusers.family import (
    Colours,
    Family,
    class_names,
    colours_without_alpha,
    unpatched_channels,
)
from telecine.models.diffusers.normalisation import Normalised
from telecine.models.diffusers.outputs import UNSUPPORTED_REMEDY, DiffusersModel
from telecine.ops.scaled_normalize import scaled_normalize
from telecine.ops.wrap_forward import wrap_forward

_BLACK_TO_WHITE: Colours = ((0.0,), (1.0,))
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


_BLOCKS_OF_IMAGES = (
    "DownEncoderBlock2D",
    "AttnDownEncoderBlock2D",
    "UNetMidBlock2D",
    "UpDecoderBlock2D",
    "AttnUpDecoderBlock2D",
)
_OF_CLIPS = Family(encode_clips, decode_clips)
_OF_FRAMES = Family(encode_frames, decode_frames)
FAMILIES = {
    "AsymmetricAutoencoderKL": Family(
        encode_frames,
        decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=_BLOCKS_OF_IMAGES,
        leaves_weights_unused=True,
    ),
    "AutoencoderDC": Family(
        encode_frames,
        decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=("ResBlock", "EfficientViTBlock"),
    ),
    "AutoencoderKL": Family(encode_frames, decode_frames, normalised=Normalised.FACTOR),
    "AutoencoderKLAllegro": Family(
        encode_allegro,
        decode_allegro,
        first_frame_apart=False,
        normalised=Normalised.FACTOR,
    ),
    "AutoencoderKLCogVideoX": Family(
        encode_clips,
        decode_clips,
        normalised=Normalised.FACTOR,
        stream=streams.COGVIDEOX,
        row_layers=row_layers.COGVIDEOX,
    ),
    "AutoencoderKLCosmos": Family(encode_clips, decode_clips, normalised=Normalised.CHANNELS),
    "AutoencoderKLFlux2": Family(encode_frames, decode_frames, normalised=Normalised.BATCH_NORM),
    "AutoencoderKLHunyuanImage": Family(
        encode_frames,
        decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=("HunyuanImageResnetBlock", "HunyuanImageMidBlock"),
    ),
    "AutoencoderKLHunyuanImageRefiner": Family(
        encode_clips, decode_clips, normalised=Normalised.FACTOR
    ),
    "AutoencoderKLHunyuanVideo": Family(encode_clips, decode_clips, normalised=Normalised.FACTOR),
    "AutoencoderKLHunyuanVideo15": Family(
        encode_clips,
        decode_clips,
        normalised=Normalised.FACTOR,
        takes_one_clip=True,
    ),
    "AutoencoderKLKVAE": Family(encode_frames, decode_frames),
    "AutoencoderKLKVAEVideo": Family(
        encode_mean,
        decode_clips,
        checkpointed_blocks=(
            "KVAECachedResnetBlock3D",
            "KVAECachedPXSDownsample",
            "KVAECachedPXSUpsample",
        ),
        stream=streams.KVAE_VIDEO,
    ),
    "AutoencoderKLLTX2Video": Family(
        encode_clips, decode_clips, changes_channels="patches", normalised=Normalised.BUFFERS
    ),
    "AutoencoderKLLTXVideo": Family(
        encode_clips,
        decode_clips,
        changes_channels="patches",
        normalised=Normalised.BUFFERS,
        row_layers=row_layers.LTX,
    ),
    "AutoencoderKLMagvit": Family(
        encode_clips,
        decode_clips,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=(
            "EasyAnimateResidualBlock3D",
            "EasyAnimateDownsampler3D",
            "EasyAnimateUpsampler3D",
        ),
        stream=streams.MAGVIT,
    ),
    "AutoencoderKLMiniMaxH3": Family(
        encode_clips,
        decode_clips,
        changes_channels="no",
        colours=IMAGENET,
        normalised=Normalised.CHANNELS,
    ),
    "AutoencoderKLMochi": Family(encode_clips, decode_clips, normalised=Normalised.CHANNELS),
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
        encode_qwen21,
        decode_qwen21,
        in_channels=colours_without_alpha,
        changes_channels="no",
        normalised=Normalised.CHANNELS,
        checkpointed_blocks=(
            "QwenImage21ResidualBlock",
            "QwenImage21AttentionBlock",
            "QwenImage21Resample",
        ),
        leaves_weights_unused=True,
    ),
    "AutoencoderKLTemporalDecoder": Family(
        encode_frames, decode_frames_together, normalised=Normalised.FACTOR
    ),
    "AutoencoderKLWan": Family(
        wan.encode,
        wan.decode,
        in_channels=unpatched_channels,
        changes_channels="patches",
        normalised=Normalised.CHANNELS,
        checkpointed_blocks=("WanResidualBlock", "WanAttentionBlock", "WanResample"),
        stream=streams.WAN,
        row_layers=row_layers.WAN,
    ),
    "AutoencoderRAE": Family(
        encode_frames,
        decode_rae,
        changes_channels="no",
        colours=_BLACK_TO_WHITE,
        only_side="decoder_image_size",
        normalised=Normalised.INSIDE,
        checkpointed_blocks=("ViTMAELayer",),
    ),
    "AutoencoderTiny": Family(
        encode_frames,
        decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=("AutoencoderTinyBlock",),
    ),
    "AutoencoderVidTok": Family(encode_vidtok, decode_clips, first_frame_apart="is_causal"),
    "Kandinsky6SRVAE": Family(
        encode_clips,
        decode_clips,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=(
            "Kandinsky6SRResnetBlock3D",
            "Kandinsky6SRDownsample",
            "Kandinsky6SRUpsample",
        ),
        stream=streams.KANDINSKY_6_SR,
    ),
    "VQModel": Family(
        encode_frames,
        decode_frames,
        normalised=Normalised.FACTOR,
        checkpointed_blocks=_BLOCKS_OF_IMAGES,
        leaves_weights_unused=True,
    ),
}
"""All classes of diffusers that are trained, beside the decoder in `diffusion_decoder`."""


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


def _normalise(forward: Callable[[Tensor], Tensor], norm: DiffusersModel, x: Tensor) -> Tensor:
    """Return what a norm's own `forward` does, which runs where nothing is trained, or code is compiled."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return forward(x)
    normed = scaled_normalize(x, norm.scale * norm.gamma)
    if isinstance(norm.bias, Tensor):
        normed = normed + norm.bias
    return normed


def prepare_for_training(module: DiffusersModel, family: Family) -> None:
    """Disable tiles, which change outputs and gradients, and slices of the batch; set faster norms and whole clips."""
    for layer in module.modules():
        if type(layer).__name__ in RMS_NORMS and layer.channel_first:
            wrap_forward(layer, _normalise, layer)
        if hasattr(layer, "time_conv"):
            wan.enable_whole_clips(layer)
    for flag in ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding"):
        if hasattr(module, flag):
            setattr(module, flag, False)
    if family.takes_one_clip:
        module.enable_slicing()
