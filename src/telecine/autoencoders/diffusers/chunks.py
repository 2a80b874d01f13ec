"""Clips in chunks of time, for the classes that keep frames from one chunk to the next.

Their encoder and decoder are called once for each chunk; each of these calls is computed again in the backward pass,
see `checkpoint_call`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from telecine.autoencoders.clip_sizes import check_multiple, size_error
from telecine.autoencoders.diffusers.checkpointing import CACHED_BLOCKS
from telecine.autoencoders.diffusers.families import Decoded, DiffusersModel, Family, LatentPosterior
from telecine.autoencoders.interface import chunks_error
from telecine.autoencoders.posterior import DiagonalGaussian
from telecine.base.checks import check_count
from telecine.base.shapes import Video
from telecine.ops.checkpointing import checkpoint_module

# Frames of a latent frame of Wan, QwenImage and Magvit.
TIME_COMPRESSION = 4

SetSize = Callable[[DiffusersModel, Family, int], Family]


@dataclass(frozen=True)
class Chunks:
    """How a class computes clips in chunks."""

    num_frames: int
    """Frames of the class's own chunks."""
    set_size: SetSize | None = None
    """Sets a multiple of `num_frames` as the size, and returns how the model is called then. None if the values would
    change, e.g. because a norm is computed over the frames of a chunk."""


def enable_chunks(module: DiffusersModel, family: Family, num_frames: int) -> Family:
    """Compute clips in chunks of `num_frames` frames; the first chunk has one more frame, or is the first frame.

    Returns:
        How the model is called from now on.

    Raises:
        ValueError: The class does not keep frames between chunks, or does not support this number.
    """
    chunks = CHUNKS.get(type(module).__name__)
    if chunks is None:
        raise chunks_error(module)
    check_count("temporal_chunk", num_frames)
    if chunks.set_size is not None:
        check_multiple("temporal_chunk", num_frames, step=chunks.num_frames)
        family = chunks.set_size(module, family, num_frames)
    elif num_frames != chunks.num_frames:
        raise size_error("temporal_chunk", num_frames, accepted=str(chunks.num_frames), nearest=chunks.num_frames)
    blocks = CACHED_BLOCKS.get(type(module).__name__)
    for part in (module.encoder, module.decoder):
        checkpoint_module(part, "" if blocks is None else blocks.cache_name)
    return family


def use_magvit(module: DiffusersModel, family: Family, num_frames: int) -> Family:
    """Set the attributes that the class has for its chunks."""
    module.num_sample_frames_batch_size = num_frames
    module.num_latent_frames_batch_size = num_frames // TIME_COMPRESSION
    return family


def use_wan(module: DiffusersModel, family: Family, num_frames: int, *, has_first_chunk: bool = True) -> Family:
    """Call encoder and decoder with larger chunks than the class does.

    QwenImage's decoder, a copy of an earlier Wan's, has no argument `first_chunk`.
    """
    return replace(
        family,
        encode=partial(encode_wan, num_frames=num_frames),
        decode=partial(decode_wan, num_frames=num_frames // TIME_COMPRESSION, has_first_chunk=has_first_chunk),
    )


def encode_wan(module: DiffusersModel, video: Video, *, num_frames: int) -> LatentPosterior:
    """Encode the first frame, then chunks of `num_frames` frames."""
    if patch := getattr(module.config, "patch_size", None):
        video = rearrange(video, "b c t (h q) (w r) -> b (c r q) t h w", q=patch, r=patch)
    earlier = [None] * module._cached_conv_counts["encoder"]
    parts = [module.encoder(x, feat_cache=earlier, feat_idx=[0]) for x in first_and_chunks(video, num_frames)]
    mean, logvar = module.quant_conv(torch.cat(parts, dim=2)).chunk(2, dim=1)
    return DiagonalGaussian(mean=mean, logvar=logvar)


def decode_wan(module: DiffusersModel, latent: Tensor, *, num_frames: int, has_first_chunk: bool) -> Decoded:
    """Decode the first latent frame, then chunks of `num_frames` latent frames."""
    first, *chunks = first_and_chunks(module.post_quant_conv(latent), num_frames)
    earlier = [None] * module._cached_conv_counts["decoder"]
    is_first = {"first_chunk": True} if has_first_chunk else {}
    parts = [module.decoder(first, feat_cache=earlier, feat_idx=[0], **is_first)]
    parts += [module.decoder(z, feat_cache=earlier, feat_idx=[0]) for z in chunks]
    video = torch.cat(parts, dim=2)
    if patch := getattr(module.config, "patch_size", None):
        video = rearrange(video, "b (c r q) t h w -> b c t (h q) (w r)", q=patch, r=patch)
    return Decoded(video, {})


def first_and_chunks(video: Tensor, num_frames: int) -> list[Tensor]:
    """Return the first frame of `(B, C, T, H, W)`, and the others in chunks of `num_frames`."""
    return [x for x in (video[:, :, :1], *video[:, :, 1:].split(num_frames, dim=2)) if x.shape[2] > 0]


CHUNKS = {
    "AutoencoderKLCogVideoX": Chunks(8),
    "AutoencoderKLKVAEVideo": Chunks(16),
    "AutoencoderKLMagvit": Chunks(4, use_magvit),
    "AutoencoderKLQwenImage": Chunks(4, partial(use_wan, has_first_chunk=False)),
    "AutoencoderKLWan": Chunks(4, use_wan),
    "Kandinsky6SRVAE": Chunks(16),
}
