"""What changes of a latent do to the decoded video: transformations, noise, and fewer channels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from telecine.base.shapes import VALUE_RANGE, Video
from telecine.base.terminal import with_progress
from telecine.evaluation.metrics import mean_over_clips
from telecine.evaluation.metrics.pixels import psnr
from telecine.losses import mse
from telecine.losses.latent import resized
from telecine.models import VideoAutoencoder
from telecine.tools.latents.clips import ClipsOnDisk

NOISE = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # standard deviations, in units of each channel's
NO_TRANSFORM = "none"
HALF = "scale_1/2"


def _halved(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    return resized(x, [max(height // 2, 1), max(width // 2, 1)])


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    HALF: _halved,
    "flip_horizontal": partial(torch.flip, dims=(-1,)),
    "flip_vertical": partial(torch.flip, dims=(-2,)),
    "turn_90": partial(torch.rot90, k=1, dims=(-2, -1)),
    "turn_180": partial(torch.rot90, k=2, dims=(-2, -1)),
    "turn_270": partial(torch.rot90, k=3, dims=(-2, -1)),
}


@dataclass(frozen=True)
class DecodedChanges:
    """Means over clips of the errors of decoded changed latents."""

    equivariance: dict[str, dict[str, float]]
    """`mse` and `psnr` by transformation; "none" is the reconstruction."""
    noise_psnr: dict[str, float]
    """In dB, by the noise's standard deviation."""
    nested_psnr: dict[str, float]
    """In dB, by the number of channels to which the latent is cut."""


@torch.no_grad()
def decode_changes(
    model: VideoAutoencoder, clips: ClipsOnDisk, latents: Tensor, std: list[float]
) -> DecodedChanges:
    """Decode changed latents of clips, and compare them with the clips.

    Args:
        model: The autoencoder.
        clips: The clips.
        latents: Their latents, `(N, C, t, h, w)` on the CPU.
        std: The standard deviation of each channel, the unit of the noise.
    """
    device = next(model.parameters()).device

    def decode(latent: Tensor) -> Video:
        return model.decode(latent.to(device)).float().clamp(*VALUE_RANGE).cpu()

    transforms = {NO_TRANSFORM: torch.clone, **TRANSFORMS}
    if not _accepts_half(model, clips, latents):
        del transforms[HALF]
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(std).view(1, -1, 1, 1, 1)
    mse_per_clip = []
    psnr_per_clip = []
    noise_per_clip = []
    nested_per_clip = []
    pairs = zip(clips, latents.split(1), strict=True)
    for video, latent in with_progress(pairs, "decoding", total=len(clips)):
        clip_mse = {}
        clip_psnr = {}
        for name, transform in transforms.items():
            decoded = decode(transform(latent.to(device)))
            target = transform(video)
            if target.shape != decoded.shape:  # half of an odd number of positions
                target = resized(video, list(decoded.shape[-2:]))
            clip_mse[name] = mse(reconstruction=decoded, target=target).item()
            clip_psnr[name] = psnr(reconstruction=decoded, target=target).item()
        mse_per_clip.append(clip_mse)
        psnr_per_clip.append(clip_psnr)
        noise = torch.randn(latent.shape, generator=generator) * scale
        noise_psnr = {}
        for level in NOISE:
            noise_psnr[f"{level:g}"] = psnr(
                reconstruction=decode(latent + level * noise), target=video
            ).item()
        noise_per_clip.append(noise_psnr)
        nested_psnr = {}
        for number in sorted(model.nested_channels):
            nested_psnr[str(number)] = psnr(
                reconstruction=decode(latent[:, :number]), target=video
            ).item()
        nested_per_clip.append(nested_psnr)
    mean_mse = mean_over_clips(mse_per_clip)
    mean_psnr = mean_over_clips(psnr_per_clip)
    return DecodedChanges(
        equivariance={
            name: {"mse": mean_mse[name], "psnr": mean_psnr[name]} for name in transforms
        },
        noise_psnr=mean_over_clips(noise_per_clip),
        nested_psnr=mean_over_clips(nested_per_clip),
    )


def _accepts_half(model: VideoAutoencoder, clips: ClipsOnDisk, latents: Tensor) -> bool:
    """Return whether the model accepts clips of the size that half of a latent decodes to."""
    num_frames, height, width = clips.config.val_bucket.shape
    rows, columns = latents.shape[-2:]
    half_height = height * max(rows // 2, 1) // rows
    half_width = width * max(columns // 2, 1) // columns
    return model.covering_clip(num_frames, half_height, half_width) == (
        num_frames,
        half_height,
        half_width,
    )
