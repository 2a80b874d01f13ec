"""How the classes of diffusers are called: clips of video, frames one by one, and what single classes need."""

import torch
from torch import Tensor

from telecine.base.shapes import Video
from telecine.models.diffusers import wan
from telecine.models.diffusers.outputs import (
    Decoded,
    DiffusersModel,
    LatentPosterior,
    read_decoded,
    read_posterior,
)
from telecine.models.latent import DeterministicPosterior, DiagonalGaussian


def encode_clips(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Return the posterior of a class of video, which encodes clips `(B, C, T, H, W)`."""
    return read_posterior(module.encode(video))


def takes_level(module: DiffusersModel) -> bool:
    """Return whether a decoder is told the level of noise of its latent, as LTX-Video's is from 0.9.1 on."""
    config = getattr(module, "config", None)
    return bool(getattr(config, "timestep_conditioning", False))


def decode_clips(
    module: DiffusersModel, latent: Tensor, noise_level: Tensor | None = None
) -> Decoded:
    """Decode clips of a class of video.

    Args:
        module: The model.
        latent: `(B, C, t, h, w)`.
        noise_level: The level of noise of each latent, `(B,)`, if the model `takes_level`; None for 0.
    """
    if not takes_level(module):
        return read_decoded(module.decode(latent))
    if noise_level is None:
        noise_level = latent.new_zeros(len(latent))
    return read_decoded(module.decode(latent, temb=noise_level.to(latent.dtype)))


def _frames_from_clips(video: Video, as_clips: bool = False) -> Tensor:
    """Return the frames `(B*T, C, H, W)` of `(B, C, T, H, W)`; `as_clips` of one frame, `(B*T, C, 1, H, W)`."""
    frames = video.transpose(1, 2).flatten(0, 1)
    return frames[:, :, None] if as_clips else frames


def _clips_from_frames(frames: Tensor, batch: int) -> Video:
    """Return the clips `(B, C, T, H, W)` of frames `(B*T, C, H, W)` or `(B*T, C, 1, H, W)`."""
    return frames.flatten(1, -3).unflatten(0, (batch, -1)).transpose(1, 2)


def encode_frames(
    module: DiffusersModel, video: Video, *, as_clips: bool = False
) -> LatentPosterior:
    """Encode each frame by itself.

    Args:
        module: The model.
        video: `(B, C, T, H, W)`.
        as_clips: Whether the class takes a frame as a clip of one frame.
    """
    posterior = read_posterior(module.encode(_frames_from_clips(video, as_clips)))
    if isinstance(posterior, DeterministicPosterior):
        return DeterministicPosterior(
            _clips_from_frames(posterior.latent, len(video)), posterior.losses
        )
    mean = _clips_from_frames(posterior.mean, len(video))
    logvar = _clips_from_frames(posterior.logvar, len(video))
    return DiagonalGaussian(mean=mean, logvar=logvar)


def decode_frames(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode each frame of a latent `(B, C, t, h, w)` by itself."""
    frames, losses = read_decoded(module.decode(_frames_from_clips(latent)))
    return _clips_from_frames(frames, len(latent)), losses


def decode_frames_together(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode the frames of clips, of which the decoder mixes `num_frames`."""
    frames, losses = read_decoded(
        module.decode(_frames_from_clips(latent), num_frames=latent.shape[2])
    )
    return _clips_from_frames(frames, len(latent)), losses


def decode_rae(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode each frame from a contiguous latent: the class's decoder views height and width as one axis."""
    return decode_frames(module, latent.contiguous())


def encode_allegro(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode whole clips; Allegro's own `encode` only works with tiles."""
    moments = module.quant_conv(_frames_from_clips(module.encoder(video)))
    mean, logvar = _clips_from_frames(moments, len(video)).chunk(2, dim=1)
    return DiagonalGaussian(mean=mean, logvar=logvar)


def decode_allegro(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode whole clips, as `encode_allegro` encodes them."""
    features = _clips_from_frames(module.post_quant_conv(_frames_from_clips(latent)), len(latent))
    return module.decoder(features), {}


def encode_mean(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Return only the mean: the class returns a constant variance of 1, which it was not trained with."""
    return DeterministicPosterior(module.encode(video).latent_dist.mode())


def encode_qwen21(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode each frame, with an opaque alpha channel added if the model has one."""
    if module.config.in_channels == 4:
        video = torch.cat([video, torch.ones_like(video[:, :1])], dim=1)
    return encode_frames(module, video, as_clips=True)


def decode_qwen21(module: DiffusersModel, latent: Tensor) -> Decoded:
    """Decode each frame, without the alpha channel if the model has one."""
    frames, losses = wan.decode(module, _frames_from_clips(latent, as_clips=True))
    return _clips_from_frames(frames, len(latent))[:, :3], losses


def encode_vidtok(module: DiffusersModel, video: Video) -> LatentPosterior:
    """Encode clips with copies of their first frame prepended, as the class's own `forward` does."""
    if module.is_causal:
        copies = video[:, :, :1].expand(-1, -1, module.temporal_compression_ratio - 1, -1, -1)
        video = torch.cat([copies, video], dim=2)
    return encode_clips(module, video)
