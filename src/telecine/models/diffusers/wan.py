"""How Wan and QwenImage are encoded and decoded: in chunks, as the classes do, or whole clips at once.

The classes call their networks once for each latent frame, and the layers keep frames for the next call in a list. An
update has the whole clip: one call without kept frames, with the causal padding of the convolutions, has the same
values. Only the temporal resampling, which leaves the first frame apart, works with kept frames alone; hooks do it for
whole clips. The classes' own `decode` clamps to [-1, 1], and has no gradient outside of this range.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from telecine.base.shapes import Video
from telecine.models.diffusers.outputs import (
    Decoded,
    DiffusersModel,
    LatentPosterior,
    read_posterior,
)
from telecine.models.latent import DiagonalGaussian

# Frames of a latent frame, but for the first.
TIME_COMPRESSION = 4


def encode(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Return the posterior: of the whole clip at once with a graph; else in the class's own chunks, in less memory."""
    if torch.is_grad_enabled():
        return encode_whole(module, video)
    return read_posterior(module.encode(video))


def encode_whole(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Return the posterior of a clip `(B, C, T, H, W)`, in one call."""
    return _posterior(module, module.encoder(_network_input(module, video)))


def encode_in_chunks(module: DiffusersModel, video: Video, *, num_frames: int) -> LatentPosterior:
    """Return the posterior of a clip: one call for the first frame, and one for each `num_frames` others.

    Args:
        module: The model.
        video: `(B, C, T, H, W)` in [-1, 1].
        num_frames: A multiple of `TIME_COMPRESSION`.
    """
    kept_frames = [None] * module._cached_conv_counts["encoder"]
    parts = []
    for chunk in _first_and_chunks(_network_input(module, video), num_frames):
        parts.append(module.encoder(chunk, feat_cache=kept_frames, feat_idx=[0]))
    return _posterior(module, torch.cat(parts, dim=2))


def _network_input(module: DiffusersModel, video: Video) -> Tensor:
    """Return what the encoder's network is called with: patches of whole latent frames, as the class has them."""
    num_complete = (video.shape[2] - 1) // TIME_COMPRESSION * TIME_COMPRESSION + 1
    return patched(module, video[:, :, :num_complete])


def patched(module: DiffusersModel, video: Video) -> Tensor:
    """Return a video in patches of the model's `patch_size`, if it has one."""
    patch = getattr(module.config, "patch_size", None)
    if not patch:
        return video
    return rearrange(video, "b c t (h q) (w r) -> b (c r q) t h w", q=patch, r=patch)


def _posterior(module: DiffusersModel, moments: Tensor) -> DiagonalGaussian:
    mean, logvar = module.quant_conv(moments).chunk(2, dim=1)
    return DiagonalGaussian(mean=mean, logvar=logvar)


def decode(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Return the video: of the whole latent at once with a graph; else frame by frame, in less memory."""
    if torch.is_grad_enabled():
        return decode_whole(module, latent)
    return decode_in_chunks(module, latent, num_latent_frames=1)


def decode_whole(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Return the video of a latent `(B, C, t, h, w)`, in one call."""
    latent = module.post_quant_conv(latent)
    video = module.decoder(latent, **options_of_first_call(module.decoder))
    return unpatched(module, video), {}


def decode_in_chunks(module: DiffusersModel, latent: Tensor, *, num_latent_frames: int) -> Decoded:
    """Return the video of a latent: one call for the first latent frame, and one for each `num_latent_frames` others.

    Args:
        module: The model.
        latent: `(B, C, t, h, w)`.
        num_latent_frames: At least 1.
    """
    first, *chunks = _first_and_chunks(module.post_quant_conv(latent), num_latent_frames)
    kept_frames = [None] * module._cached_conv_counts["decoder"]
    options = options_of_first_call(module.decoder)
    parts = [module.decoder(first, feat_cache=kept_frames, feat_idx=[0], **options)]
    for chunk in chunks:
        parts.append(module.decoder(chunk, feat_cache=kept_frames, feat_idx=[0]))
    return unpatched(module, torch.cat(parts, dim=2)), {}


def options_of_first_call(network: DiffusersModel) -> dict[str, bool]:
    """Return the argument with which some decoders are told that they are called for the first chunk."""
    if "first_chunk" in inspect.signature(type(network).forward).parameters:
        return {"first_chunk": True}
    return {}


def unpatched(module: DiffusersModel, output: Tensor) -> Video:
    """Return the video of the decoder's output, which may be patches."""
    patch = getattr(module.config, "patch_size", None)
    if not patch:
        return output
    return rearrange(output, "b (c r q) t h w -> b c t (h q) (w r)", q=patch, r=patch)


def _first_and_chunks(x: Tensor, num_frames: int) -> list[Tensor]:
    """Return the first frame, and the others in chunks of `num_frames` frames."""
    chunks = [x[:, :, :1]]
    if x.shape[2] > 1:
        chunks.extend(x[:, :, 1:].split(num_frames, dim=2))
    return chunks


def enable_whole_clips(resample: DiffusersModel) -> None:
    """Add the hook of a layer with temporal resampling that is called for whole clips, if it does not have it yet."""
    mode = getattr(resample, "mode", None)
    if mode == "downsample3d" and _downsample_time not in resample._forward_hooks.values():
        resample.register_forward_hook(_downsample_time, with_kwargs=True)
    if mode == "upsample3d" and _upsample_time not in resample._forward_pre_hooks.values():
        resample.register_forward_pre_hook(_upsample_time, with_kwargs=True)


def _downsample_time(
    resample: DiffusersModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Video
) -> Video | None:
    """Halve the frames after the first of a whole clip; a forward hook. `None` leaves the output as it is."""
    if _keeps_frames(args, kwargs) or output.shape[2] == 1:
        return None
    return torch.cat([output[:, :, :1], resample.time_conv(output)], dim=2)


def _upsample_time(
    resample: DiffusersModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Double the frames after the first of a whole clip; a forward pre-hook. `None` leaves the input as it is."""
    if _keeps_frames(args, kwargs) or args[0].shape[2] == 1:
        return None
    video, *others = args
    doubled = rearrange(resample.time_conv(video[:, :, 1:]), "b (n c) t h w -> b c (t n) h w", n=2)
    return (torch.cat([video[:, :, :1], doubled], dim=2), *others), kwargs


def _keeps_frames(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a layer is called in chunks: then it resamples by itself."""
    return len(args) > 1 or kwargs.get("feat_cache") is not None
