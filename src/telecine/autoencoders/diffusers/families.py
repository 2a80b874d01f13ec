"""How each diffusers class is encoded and decoded with gradients. Most classes need only their own methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from telecine.autoencoders.posterior import DeterministicPosterior, DiagonalGaussian
from telecine.base.checks import argument_error, describe
from telecine.base.shapes import Video

DiffusersModel: TypeAlias = Any
"""An `nn.Module` whose `encode` and `decode` are called as those of diffusers' autoencoders; diffusers is untyped."""

LatentPosterior: TypeAlias = DiagonalGaussian | DeterministicPosterior

# MiniMax-H3 was trained on colours in [0, 1], normalised with ImageNet's statistics.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNSUPPORTED_REMEDY = "Wrap the model in a module whose `forward` maps video to video."


class Decoded(NamedTuple):
    """Output of a decoder."""

    video: Video
    losses: dict[str, Tensor]
    """Losses of a quantizer inside the decoder by name, 0-d."""


@dataclass(frozen=True)
class Family:
    """How the models of a class are called."""

    encode: Callable[[DiffusersModel, Video], LatentPosterior]
    """From the model and a video `(B, 3, T, H, W)` in [-1, 1] to the posterior."""
    decode: Callable[[DiffusersModel, Tensor], Decoded]
    """From the model and a latent `(B, C, t, h, w)` to the video."""


def family_of(module: nn.Module) -> Family:
    """Return how a model is called: by its class or a base class in `FAMILIES`, otherwise by its signature and weights.

    Raises:
        TypeError: The model has no `encode` or `decode`.
    """
    for name in ("encode", "decode"):
        if not callable(getattr(module, name, None)):
            got = f"{type(module).__name__} without `{name}`"
            raise argument_error("module", "a model with `encode` and `decode`", got, UNSUPPORTED_REMEDY, TypeError)
    for parent in type(module).__mro__:
        if parent.__name__ in FAMILIES:
            return FAMILIES[parent.__name__]
    return FRAMES if works_on_frames(module) else CLIPS


def works_on_frames(module: DiffusersModel) -> bool:
    """Return whether the input is frames `(B*T, 3, H, W)`: `decode` has `num_frames`, or no weight is 3D."""
    if "num_frames" in inspect.signature(module.decode).parameters:
        return True
    return all(parameter.ndim < 5 for parameter in module.parameters())


def read_posterior(output: object) -> LatentPosterior:
    """Return the posterior in the output of `encode`, in float32 at least.

    The output is an object with `latent_dist`, `latents` or `latent`, a tensor, or a tuple that starts with one of
    these. Other 0-d floating-point tensors of the tuple are a quantizer's losses.

    Raises:
        ValueError: The output is none of these.
    """
    first, *rest = output if isinstance(output, tuple) else (output,)
    for name in ("latent_dist", "latents", "latent"):
        first = getattr(first, name, first)
    if isinstance(getattr(first, "logvar", None), Tensor):
        # Only the moments are used: diffusers' own class sums the KL divergence of videos over the wrong axes.
        return DiagonalGaussian(mean=first.mean, logvar=first.logvar)
    latent = first.mode() if callable(getattr(first, "mode", None)) and not isinstance(first, Tensor) else first
    if not isinstance(latent, Tensor):
        contract = "a posterior (`latent_dist`), a latent, or a tuple that starts with one"
        raise argument_error("the output of `encode`", contract, describe(output), UNSUPPORTED_REMEDY)
    losses = [extra for extra in rest if isinstance(extra, Tensor) and extra.ndim == 0 and extra.is_floating_point()]
    return DeterministicPosterior(latent, {"quantizer_loss": torch.stack(losses).sum()} if losses else {})


def map_posterior(posterior: LatentPosterior, rearrange: Callable[[Tensor], Tensor]) -> LatentPosterior:
    """Apply `rearrange`, which moves elements without changing them, to a posterior's latent."""
    if isinstance(posterior, DiagonalGaussian):
        return DiagonalGaussian(mean=rearrange(posterior.mean), logvar=rearrange(posterior.logvar))
    return DeterministicPosterior(rearrange(posterior.latent), posterior.losses)


def read_decoded(output: object) -> Decoded:
    """Return the video in the output of `decode`: an object with `sample`, a tensor, or a tuple that starts with one.

    Raises:
        ValueError: The output is none of these.
    """
    first = output[0] if isinstance(output, tuple) else output
    video = getattr(first, "sample", first)
    if not isinstance(video, Tensor):
        contract = "a video (`sample`) or a tensor"
        raise argument_error("the output of `decode`", contract, describe(output), UNSUPPORTED_REMEDY)
    loss = getattr(first, "commit_loss", None)
    return Decoded(video, {} if loss is None else {"commit_loss": loss.mean()})


def encode_clips(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode whole clips."""
    return read_posterior(module.encode(video))


def decode_clips(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode the latents of whole clips."""
    return read_decoded(module.decode(latent, **decoder_inputs(module, latent)))


def decoder_inputs(module: DiffusersModel, latent: Tensor) -> dict[str, Tensor]:
    """Return a decoder's further inputs: LTX from 0.9.1 on needs the noise level of the latent, which is 0."""
    if not getattr(getattr(module, "config", None), "timestep_conditioning", False):
        return {}
    return {"temb": latent.new_zeros(len(latent))}


def frames_from_clips(video: Video) -> Tensor:
    """Return the frames `(B*T, C, H, W)` of `(B, C, T, H, W)`."""
    return video.transpose(1, 2).flatten(0, 1)


def clips_from_frames(frames: Tensor, batch: int) -> Video:
    """Return the clips `(B, C, T, H, W)` of frames `(B*T, C, H, W)`."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def encode_frames(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode each frame of a clip separately."""
    posterior = read_posterior(module.encode(frames_from_clips(video)))
    return map_posterior(posterior, lambda frames: clips_from_frames(frames, len(video)))


def decode_frames(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode each frame separately, or all frames of a clip together if `decode` has a parameter `num_frames`."""
    has_num_frames = "num_frames" in inspect.signature(module.decode).parameters
    output = module.decode(frames_from_clips(latent), **({"num_frames": latent.shape[2]} if has_num_frames else {}))
    frames, losses = read_decoded(output)
    return Decoded(clips_from_frames(frames, len(latent)), losses)


def encode_allegro(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode whole clips; Allegro's own `encode` only works with tiles."""
    moments = module.quant_conv(frames_from_clips(module.encoder(video)))
    mean, logvar = clips_from_frames(moments, len(video)).chunk(2, dim=1)
    return DiagonalGaussian(mean=mean, logvar=logvar)


def decode_allegro(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode the latents of whole clips."""
    hidden = clips_from_frames(module.post_quant_conv(frames_from_clips(latent)), len(latent))
    return Decoded(module.decoder(hidden), {})


def encode_mean(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Return only the mean: the class returns a constant variance of 1, which it was not trained with."""
    return DeterministicPosterior(module.encode(video).latent_dist.mode())


def encode_imagenet(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode clips after normalising their colours with ImageNet's statistics."""
    return encode_clips(
        module, ((video + 1) / 2 - per_channel(IMAGENET_MEAN, video)) / per_channel(IMAGENET_STD, video)
    )


def decode_imagenet(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode, then convert ImageNet's normalised colours to [-1, 1]."""
    video, losses = decode_clips(module, latent)
    return Decoded((video * per_channel(IMAGENET_STD, video) + per_channel(IMAGENET_MEAN, video)) * 2 - 1, losses)


def per_channel(values: tuple[float, ...], like: Video) -> Tensor:
    """Return one value per channel as `(1, C, 1, 1, 1)`, on the device and of the dtype of a video."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)


def encode_rgba(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode clips, with an opaque alpha channel added if the model has one."""
    if module.config.in_channels == 4:
        video = torch.cat([video, torch.ones_like(video[:, :1])], dim=1)
    return encode_clips(module, video)


def decode_rgb(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode, and drop the alpha channel."""
    video, losses = decode_clips(module, latent)
    return Decoded(video[:, :3], losses)


def encode_vidtok(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode clips with copies of their first frame prepended, as the class's own `forward` does."""
    if module.is_causal:
        copies = video[:, :, :1].expand(-1, -1, module.temporal_compression_ratio - 1, -1, -1)
        video = torch.cat([copies, video], dim=2)
    return encode_clips(module, video)


CLIPS = Family(encode_clips, decode_clips)
FRAMES = Family(encode_frames, decode_frames)

# Classes that need more than their own `encode` and `decode`. Names, because the installed diffusers may lack them.
FAMILIES = {
    "AutoencoderKLAllegro": Family(encode_allegro, decode_allegro),
    "AutoencoderKLKVAEVideo": Family(encode_mean, decode_clips),
    "AutoencoderKLMiniMaxH3": Family(encode_imagenet, decode_imagenet),
    # Its kernels are 2D, but its input is clips.
    "AutoencoderKLQwenImage21": Family(encode_rgba, decode_rgb),
    "AutoencoderVidTok": Family(encode_vidtok, decode_clips),
}

# Classes whose attention only supports one clip at a time.
ONE_CLIP_AT_A_TIME = ("AutoencoderKLHunyuanVideo15",)


def prepare_for_training(module: DiffusersModel) -> None:
    """Disable tiles, which change outputs and gradients, and slices of the batch."""
    for flag in ("use_tiling", "use_slicing", "use_framewise_encoding", "use_framewise_decoding"):
        if hasattr(module, flag):
            setattr(module, flag, False)
    if any(parent.__name__ in ONE_CLIP_AT_A_TIME for parent in type(module).__mro__):
        module.enable_slicing()
