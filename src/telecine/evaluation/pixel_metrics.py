"""Metrics of pixel values: PSNR, SSIM, MS-SSIM, sharpness, flicker, grids; and PSNR and SSIM of published protocols.

`ReconstructionMetrics` checks that clips have the length and size that `DEFINITIONS` states.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from telecine.base.shapes import Frames, Video
from telecine.data import bytes_from_video
from telecine.evaluation.protocol import GRID_PERIODS
from telecine.losses import temporal_difference
from telecine.losses.perceptual import as_rgb
from telecine.losses.reconstruction import psnr_of_mse

_SSIM_SIGMA = 1.5
_SSIM_WINDOW = 11
_UNIFORM_WINDOW = 7  # the default of scikit-image's `structural_similarity`
_PSNR_EPSILON = 1e-8  # VidTok adds it to the mean squared error of a frame in [0, 1]
_MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_GRID_PATCH = 32
_FLAT_FRACTION = 0.25
# Variance of rounding to 8 bits, for values in [-1, 1]. Smaller variances carry no information.
_ROUNDING_VARIANCE = (2 / 255) ** 2 / 12


def psnr(*, reconstruction: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each clip or frame, `(B,)` in dB, at most 100; larger is better.

    The mean squared error is taken over all pixels of a clip, so the PSNR of a clip is not the mean of the PSNRs of its
    frames. The peak is the width of the value range [-1, 1], which is 2. NaN stays NaN.
    """
    return psnr_of_mse((reconstruction - target).square().flatten(1).mean(1))


def _psnr_frames_epsilon(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the PSNR of each frame, `(N,)` in dB, as VidTok: 1e-8 is added to the error in [0, 1]; at most 80."""
    error = (_to_unit_range(reconstruction) - _to_unit_range(target)).square().flatten(1).mean(1)
    return -10 * torch.log10(error + _PSNR_EPSILON)


def _psnr_bytes(*, reconstruction: Video, target: Video, modulo: bool = False) -> Tensor:
    """Return the PSNR of each clip in 8 bits, `(B,)` in dB, as TokenBench: 20 log10(255 / (root mean square + 1.2e-7)).

    With `modulo`, each squared error counts modulo 256, as in TokenBench's code, which computes with 8-bit integers.
    """
    error = (bytes_from_video(reconstruction).int() - bytes_from_video(target).int()).square()
    root = (error.remainder(256) if modulo else error).flatten(1).float().mean(1).sqrt()
    return 20 * torch.log10(255 / (root + torch.finfo(torch.float32).eps))


def ssim(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the structural similarity of each frame, `(N,)` in [-1, 1], 1 for identical frames; larger is better.

    Frames in [-1, 1] are mapped to [0, 1] first, because SSIM's luminance term depends on offsets and published values
    are of non-negative images (Wang et al., doi 10.1109/TIP.2003.819861). As in torchmetrics, every pixel counts and
    the border is reflected. The paper and scikit-image leave out a border of 5 pixels instead.
    """
    # Releases of torchmetrics differ in whether the border counts. The mean over the whole map does not.
    return _ssim_map(reconstruction=reconstruction, target=target).flatten(1).mean(1)


def _ssim_valid(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return `ssim` without the border of 5 pixels, where the window leaves the frame, `(N,)`; as VidTok and WF-VAE."""
    border = _SSIM_WINDOW // 2
    ssim_map = _ssim_map(reconstruction=reconstruction, target=target)
    return ssim_map[..., border:-border, border:-border].flatten(1).mean(1)


def _ssim_map(*, reconstruction: Frames, target: Frames) -> Tensor:
    # Importing torchmetrics takes three seconds, which `telecine --help` must not spend.
    from torchmetrics.functional.image import structural_similarity_index_measure

    frames = _to_unit_range(reconstruction), _to_unit_range(target)
    return structural_similarity_index_measure(
        *frames, sigma=_SSIM_SIGMA, reduction="none", data_range=1.0, return_full_image=True
    )[1]


def ssim_uniform(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the structural similarity of each frame in 8 bits, `(N,)`, as TokenBench with scikit-image's defaults."""
    from skimage.metrics import structural_similarity

    images = (bytes_from_video(frames.transpose(0, 1)).numpy(force=True) for frames in (reconstruction, target))
    settings = {"win_size": _UNIFORM_WINDOW, "data_range": 255, "channel_axis": -1}
    values = [structural_similarity(*pair, **settings) for pair in zip(*images, strict=True)]
    return target.new_tensor(values)


def ms_ssim(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the multi-scale structural similarity of each frame, `(N,)` in [0, 1]; larger is better.

    Computed by torchmetrics (Wang et al., doi 10.1109/ACSSC.2003.1292216), with the paper's five scales and exponents.
    Negative terms count as 0, because they have no real power. Frames are mapped to [0, 1] first.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    frames = _to_unit_range(reconstruction), _to_unit_range(target)
    window: dict[str, Any] = {"sigma": _SSIM_SIGMA, "kernel_size": _SSIM_WINDOW}
    return multiscale_structural_similarity_index_measure(
        *frames, **window, reduction="none", data_range=1.0, betas=_MS_SSIM_BETAS, normalize="relu"
    )


def sharpness(*, reconstruction: Video, target: Video) -> Tensor:
    """Return the edge power of each reconstruction divided by that of its target, `(B,)`; nearest to 1 is better.

    Edge power is the mean square of the differences between neighbouring pixels, along rows and columns. Below 1 the
    reconstruction is blurrier than the target. Above 1 it contains noise, ringing or invented detail. The rounding
    variance is added to both powers, so that flat clips have a finite value.
    """
    return (_edge_power(reconstruction) + _ROUNDING_VARIANCE) / (_edge_power(target) + _ROUNDING_VARIANCE)


def flicker(*, reconstruction: Video, target: Video) -> Tensor:
    """Return `telecine.losses.temporal_difference` of each clip, `(B,)` in [0, 4]; smaller is better."""
    pairs = zip(reconstruction.split(1), target.split(1), strict=True)
    return torch.stack([temporal_difference(reconstruction=recon, target=clip) for recon, clip in pairs])


def _edge_power(video: Video) -> Tensor:
    return video.diff(dim=-2).square().flatten(1).mean(1) + video.diff(dim=-1).square().flatten(1).mean(1)


def _to_unit_range(frames: Frames) -> Frames:
    return 0.5 * (frames + 1)


def _grid_excess(*, reconstruction: Video, target: Video, period: int) -> Tensor:
    """Return how much stronger a grid of `period` pixels is in each clip than in its target, `(B,)` in dB.

    A grid's power lies at one frequency and its multiples, while the spectrum of a natural image falls off smoothly. In
    flat regions, the power at the grid's frequency divided by the geometric mean of the powers at the two neighbouring
    frequencies is therefore about 1 without a grid and far larger with one. The result is 10 log10 of this ratio in the
    reconstruction over the ratio in the target: 0 for identical clips, positive if a grid was added, negative if one of
    the target (such as the block edges of a codec) was removed.

    The flattest quarter of the target's grey patches is kept, less their mean and slope. Patches hold a whole number of
    every period, so no window function is needed. Their mean is one in dB, so that flat patches count as much as busy
    ones. Sharp grid lines also appear at the multiples of their frequency: the largest period with a large value is the
    period of the grid. The variance of rounding is added to all powers, so that constant clips have a finite value.
    """
    excess = []
    for pair in zip(reconstruction, target, strict=True):
        recon_ratio, target_ratio = (_peak_ratio(patches, period).log10() for patches in _flat_patches(*pair))
        excess.append(10 * (recon_ratio - target_ratio).mean())
    return torch.stack(excess)


def _flat_patches(reconstruction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return grey patches `(N, 32, 32)` of two clips `(3, T, H, W)`, at the places where the target is flattest."""
    recon_patches, target_patches = (
        clip.mean(0).unfold(1, _GRID_PATCH, _GRID_PATCH).unfold(2, _GRID_PATCH, _GRID_PATCH).flatten(0, 2)
        for clip in (reconstruction, target)
    )
    num_kept = max(1, round(_FLAT_FRACTION * len(target_patches)))
    flattest = target_patches.var(dim=(1, 2)).topk(num_kept, largest=False).indices
    return recon_patches[flattest], target_patches[flattest]


def _peak_ratio(patches: Tensor, period: int) -> Tensor:
    """Return each patch's power at a period over the geometric mean of the powers at the neighbouring frequencies."""
    detrended = _without_plane(patches)
    rows = torch.fft.rfft(detrended, dim=2, norm="ortho").abs().square().mean(dim=1)
    columns = torch.fft.rfft(detrended, dim=1, norm="ortho").abs().square().mean(dim=2)
    power = (rows + columns) / 2 + _ROUNDING_VARIANCE  # (N, 17); that of white noise is its variance
    frequency = _GRID_PATCH // period
    neighbours = [other for other in (frequency - 1, frequency + 1) if other < power.shape[1]]
    return power[:, frequency] / power[:, neighbours].log().mean(1).exp()


def _without_plane(patches: Tensor) -> Tensor:
    """Subtract the best-fitting plane from each patch `(N, S, S)`: a slope jumps at the edge, at all frequencies."""
    size = patches.shape[-1]
    ramp = torch.arange(size).to(patches) - (size - 1) / 2
    ramp = ramp / ramp.norm()
    vertical = torch.einsum("nij,i->n", patches, ramp) / size
    horizontal = torch.einsum("nij,j->n", patches, ramp) / size
    plane = vertical[:, None, None] * ramp[:, None] + horizontal[:, None, None] * ramp
    return patches - plane - patches.mean(dim=(1, 2), keepdim=True)


# Called with `reconstruction` and `target` (B, 3, T, H, W), return (B,).
CLIP_METRICS: dict[str, Callable[..., Tensor]] = {
    "psnr": psnr,
    "psnr_alpha": lambda reconstruction, target: psnr(reconstruction=reconstruction[:, 3:], target=target[:, 3:]),
    "psnr_composite": lambda reconstruction, target: psnr(reconstruction=as_rgb(reconstruction), target=as_rgb(target)),
    "flicker": flicker,
    "sharpness": sharpness,
    **{f"grid_{period}": partial(_grid_excess, period=period) for period in GRID_PERIODS},
    "psnr_bytes": _psnr_bytes,
    "psnr_modulo": partial(_psnr_bytes, modulo=True),
}
# Called with frames (N, 3, H, W), return (N,). The value of a clip is the mean over its frames.
FRAME_METRICS: dict[str, Callable[..., Tensor]] = {
    "ssim": ssim,
    "ms_ssim": ms_ssim,
    "psnr_frames": psnr,
    "psnr_frames_epsilon": _psnr_frames_epsilon,
    "ssim_valid": _ssim_valid,
    "ssim_uniform": ssim_uniform,
}
