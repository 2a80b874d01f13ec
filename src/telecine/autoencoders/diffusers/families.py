"""How each class of diffusers is encoded and decoded with gradients; most need nothing but their own methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from telecine.autoencoders.diffusers.posterior import LatentPosterior, PointPosterior, read_posterior, reshaped
from telecine.autoencoders.posterior import DiagonalGaussian
from telecine.shapes import Video, argument_error, describe

# The colours that MiniMax-H3 was trained on: normalised by ImageNet's statistics over [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Decoded(NamedTuple):
    """What a decoder returns."""

    video: Video
    losses: dict[str, Tensor]
    """What a quantizer inside the decoder loses, by name, 0-d."""


@dataclass(frozen=True)
class Family:
    """How the models of a class are called; `module` is the diffusers model."""

    encode: Callable[[Any, Video], LatentPosterior]
    """The posterior of video `(B, 3, T, H, W)` in [-1, 1]."""
    decode: Callable[[Any, Tensor], Decoded]
    """The video of a latent `(B, C, t, h, w)`."""


def family_of(module: nn.Module) -> Family:
    """Return how a model is called: by the table for its class or a class it derives from, else by what it shows.

    Raises:
        TypeError: it lacks `encode` or `decode`.
    """
    for name in ("encode", "decode"):
        if not callable(getattr(module, name, None)):
            remedy = "Pass an autoencoder of diffusers, or write a module with the members of `VideoAutoencoder`."
            got = f"{type(module).__name__}, which lacks `{name}`"
            raise argument_error("module", "a model with `encode` and `decode`", got, remedy, TypeError)
    for parent in type(module).__mro__:
        if parent.__name__ in FAMILIES:
            return FAMILIES[parent.__name__]
    return FRAMES if takes_frames(module) else CLIPS


def takes_frames(module: Any) -> bool:
    """Say whether a model works on frames `(B*T, 3, H, W)`: it is told their number, or has no 3D weight."""
    if "num_frames" in inspect.signature(module.decode).parameters:
        return True
    return all(parameter.ndim < 5 for parameter in module.parameters())


def encode_clips(module: Any, video: Video) -> LatentPosterior:
    """Return the posterior of whole clips."""
    return read_posterior(module.encode(video))


def decode_clips(module: Any, latent: Tensor) -> Decoded:
    """Return the video of whole clips' latents."""
    return read_decoded(module.decode(latent, **conditions(module, latent)))


def conditions(module: Any, latent: Tensor) -> dict[str, Tensor]:
    """Return what a decoder wants to know beside the latent: LTX's from 0.9.1 on, which noise was added to it: none."""
    if not getattr(getattr(module, "config", None), "timestep_conditioning", False):
        return {}
    return {"temb": latent.new_zeros(len(latent))}


def read_decoded(output: Any) -> Decoded:
    """Return the video in a `decode`'s output: an object with `sample`, a tensor, or a tuple that starts with one.

    Raises:
        ValueError: the output is none of these.
    """
    first = output[0] if isinstance(output, tuple) else output
    video = getattr(first, "sample", first)
    if not isinstance(video, Tensor):
        remedy = "Wrap the model in a module of your own that has the members of `VideoAutoencoder`."
        raise argument_error("the output of `decode`", "a video (`sample`) or a tensor", describe(output), remedy)
    loss = getattr(first, "commit_loss", None)
    return Decoded(video, {} if loss is None else {"commit_loss": loss.mean()})


def fold_time(video: Video) -> Tensor:
    """Return the frames `(B*T, C, H, W)` of `(B, C, T, H, W)`."""
    return video.transpose(1, 2).flatten(0, 1)


def unfold_time(frames: Tensor, batch: int) -> Video:
    """Return the clips `(B, C, T, H, W)` of frames `(B*T, C, H, W)`."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def encode_frames(module: Any, video: Video) -> LatentPosterior:
    """Return the posterior of clips whose frames are encoded one by one."""
    posterior = read_posterior(module.encode(fold_time(video)))
    return reshaped(posterior, lambda frames: unfold_time(frames, len(video)))


def decode_frames(module: Any, latent: Tensor) -> Decoded:
    """Return the video of latents that are decoded frame by frame, or together when the model is told their number."""
    counted = "num_frames" in inspect.signature(module.decode).parameters
    output = module.decode(fold_time(latent), **({"num_frames": latent.shape[2]} if counted else {}))
    frames, losses = read_decoded(output)
    return Decoded(unfold_time(frames, len(latent)), losses)


def encode_allegro(module: Any, video: Video) -> LatentPosterior:
    """Return the posterior of whole clips: Allegro's own `encode` refuses to work without tiles."""
    moments = module.quant_conv(fold_time(module.encoder(video)))
    mean, logvar = unfold_time(moments, len(video)).chunk(2, dim=1)
    return DiagonalGaussian(mean=mean, logvar=logvar)


def decode_allegro(module: Any, latent: Tensor) -> Decoded:
    """Return the video of whole clips' latents."""
    return Decoded(module.decoder(unfold_time(module.post_quant_conv(fold_time(latent)), len(latent))), {})


def encode_noiseless(module: Any, video: Video) -> LatentPosterior:
    """Return the mean alone: the class sets the variance to 1, whose noise would drown what it was trained on."""
    return PointPosterior(module.encode(video).latent_dist.mode())


def encode_imagenet(module: Any, video: Video) -> LatentPosterior:
    """Return the posterior of clips whose colours are normalised by ImageNet's statistics."""
    return encode_clips(
        module, ((video + 1) / 2 - per_channel(IMAGENET_MEAN, video)) / per_channel(IMAGENET_STD, video)
    )


def decode_imagenet(module: Any, latent: Tensor) -> Decoded:
    """Return video in [-1, 1] from one in ImageNet's normalised colours."""
    video, losses = decode_clips(module, latent)
    return Decoded((video * per_channel(IMAGENET_STD, video) + per_channel(IMAGENET_MEAN, video)) * 2 - 1, losses)


def per_channel(values: tuple[float, ...], like: Video) -> Tensor:
    """Return one value for each channel of a video."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)


def encode_opaque(module: Any, video: Video) -> LatentPosterior:
    """Return the posterior of clips to which an opaque alpha channel is added where the model has one."""
    if module.config.in_channels == 4:
        video = torch.cat([video, torch.ones_like(video[:, :1])], dim=1)
    return encode_clips(module, video)


def decode_opaque(module: Any, latent: Tensor) -> Decoded:
    """Return the colours without the alpha channel, which nothing is compared with."""
    video, losses = decode_clips(module, latent)
    return Decoded(video[:, :3], losses)


def encode_vidtok(module: Any, video: Video) -> LatentPosterior:
    """Return the posterior of clips with their first frame repeated before them, as the class's own `forward` does."""
    if module.is_causal:
        before = video[:, :, :1].expand(-1, -1, module.temporal_compression_ratio - 1, -1, -1)
        video = torch.cat([before, video], dim=2)
    return encode_clips(module, video)


CLIPS = Family(encode_clips, decode_clips)
FRAMES = Family(encode_frames, decode_frames)

# The classes that need more than their own `encode` and `decode`, by name: none has to be in the installed diffusers.
FAMILIES = {
    "AutoencoderKLAllegro": Family(encode_allegro, decode_allegro),
    "AutoencoderKLKVAEVideo": Family(encode_noiseless, decode_clips),
    "AutoencoderKLMiniMaxH3": Family(encode_imagenet, decode_imagenet),
    # Its kernels are 2D, but it takes clips.
    "AutoencoderKLQwenImage21": Family(encode_opaque, decode_opaque),
    "AutoencoderVidTok": Family(encode_vidtok, decode_clips),
}

# Their attention takes one clip at a time.
ONE_CLIP_AT_A_TIME = ("AutoencoderKLHunyuanVideo15",)


def prepare_for_training(module: Any) -> None:
    """Make a model compute whole clips: without tiles, which change outputs and gradients, or slices of the batch."""
    for flag in ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding"):
        if hasattr(module, flag):
            setattr(module, flag, False)
    if any(parent.__name__ in ONE_CLIP_AT_A_TIME for parent in type(module).__mro__):
        module.enable_slicing()
