"""Metrics of pixel values that are measured by default: PSNR, SSIM, MS-SSIM, flicker, sharpness and grids.

`ReconstructionMetrics` checks that clips have the length and size that each metric needs.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from telecine.base.shapes import Frames, Video
from telecine.evaluation.metrics.metric import ClipMetric, FrameMetric, register
from telecine.losses import temporal_difference
from telecine.losses.perceptual import as_rgb
from telecine.losses.reconstruction import MAX_PSNR, psnr_of_mse

SSIM_SIGMA = 1.5
SSIM_WINDOW = 11  # pixels
SSIM_K1 = 0.01
SSIM_K2 = 0.03
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
GRID_PERIODS = (2, 4, 8, 16)  # spatial strides of common autoencoders
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


register(
    ClipMetric(
        name="psnr",
        label="PSNR",
        unit="dB",
        definition=f"10 log10(2^2 / mean squared error over all pixels of a clip in [-1, 1]), at most {MAX_PSNR:g}",
        function=psnr,
        frame_function=psnr,
        is_default=True,
    )
)


def psnr_alpha(*, reconstruction: Video, target: Video) -> Tensor:
    """Return `psnr` of the alpha of RGBA clips `(B, 4, T, H, W)`, `(B,)` in dB; larger is better."""
    return psnr(reconstruction=reconstruction[:, 3:], target=target[:, 3:])


register(
    ClipMetric(
        name="psnr_alpha",
        unit="dB",
        definition="as psnr, of the alpha of RGBA alone",
        function=psnr_alpha,
        needs_alpha=True,
    )
)


def psnr_composite(*, reconstruction: Video, target: Video) -> Tensor:
    """Return `psnr` of RGBA clips `(B, 4, T, H, W)` composited on mid-grey, `(B,)` in dB; larger is better."""
    return psnr(reconstruction=as_rgb(reconstruction), target=as_rgb(target))


register(
    ClipMetric(
        name="psnr_composite",
        unit="dB",
        definition="as psnr, of RGBA composited on mid-grey",
        function=psnr_composite,
        needs_alpha=True,
    )
)


def unit_range(frames: Frames) -> Frames:
    """Return frames in [-1, 1] mapped to [0, 1]."""
    return 0.5 * (frames + 1)


def ssim_map(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the structural similarity at each pixel of frames `(N, C, H, W)` in [-1, 1], of the same shape.

    Equation 13 of Wang et al. 2004, with borders reflected. The operations are those of torchmetrics, whose import
    takes 1.5 s and 80 MB, so that all values are the same.
    """
    window = _gaussian_window(target)
    margin = SSIM_WINDOW // 2
    x = F.pad(unit_range(reconstruction), (margin, margin, margin, margin), mode="reflect")
    y = F.pad(unit_range(target), (margin, margin, margin, margin), mode="reflect")
    moments = torch.cat([x, y, x * x, y * y, x * y])
    means = F.conv2d(moments, window, groups=target.shape[1])
    mu_x, mu_y, mean_xx, mean_yy, mean_xy = means.split(len(target))
    variance_x = (mean_xx - mu_x.square()).clamp_min(0)
    variance_y = (mean_yy - mu_y.square()).clamp_min(0)
    covariance = mean_xy - mu_x * mu_y
    luminance = 2 * (mu_x * mu_y) + SSIM_K1**2
    contrast = 2 * covariance + SSIM_K2**2
    luminance_scale = mu_x.square() + mu_y.square() + SSIM_K1**2
    contrast_scale = variance_x + variance_y + SSIM_K2**2
    return (luminance * contrast) / (luminance_scale * contrast_scale)


def _gaussian_window(frames: Frames) -> Tensor:
    """Return the window of SSIM for each channel of frames, `(C, 1, 11, 11)`, of their type."""
    radius = SSIM_WINDOW // 2
    offsets = torch.arange(-radius, radius + 1, dtype=frames.dtype, device=frames.device)
    weights = torch.exp(-(offsets / SSIM_SIGMA).square() / 2)
    weights = weights / weights.sum()
    return torch.outer(weights, weights).expand(frames.shape[1], 1, -1, -1)


def ssim(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the structural similarity of each frame, `(N,)` in [-1, 1], 1 for identical frames; larger is better.

    Frames in [-1, 1] are mapped to [0, 1] first, because SSIM's luminance term depends on offsets and published values
    are of non-negative images (Wang et al., doi 10.1109/TIP.2003.819861). As in torchmetrics, every pixel counts and
    the border is reflected. The paper and scikit-image leave out a border of 5 pixels instead.
    """
    # Releases of torchmetrics differ in whether the border counts. The mean over the whole map does not.
    return ssim_map(reconstruction=reconstruction, target=target).flatten(1).mean(1)


register(
    FrameMetric(
        name="ssim",
        label="SSIM",
        definition=f"Wang et al. 2004; RGB frames in [0, 1], Gaussian window {SSIM_WINDOW} x {SSIM_WINDOW} with sigma "
        f"{SSIM_SIGMA}, borders reflected and counted, k1 0.01, k2 0.03",
        averaging="mean over channels, pixels, frames, then clips",
        min_side=SSIM_WINDOW,
        function=ssim,
        is_default=True,
    )
)


def ms_ssim(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the multi-scale structural similarity of each frame, `(N,)` in [0, 1]; larger is better.

    Computed by torchmetrics (Wang et al., doi 10.1109/ACSSC.2003.1292216), with the paper's five scales and exponents.
    Negative terms count as 0, because they have no real power. Frames are mapped to [0, 1] first.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return multiscale_structural_similarity_index_measure(
        unit_range(reconstruction),
        unit_range(target),
        sigma=SSIM_SIGMA,
        kernel_size=SSIM_WINDOW,
        reduction="none",
        data_range=1.0,
        betas=MS_SSIM_BETAS,
        normalize="relu",
    )


register(
    FrameMetric(
        name="ms_ssim",
        definition="Wang et al. 2003, as in torchmetrics; RGB frames in [0, 1], "
        f"{len(MS_SSIM_BETAS)} scales with exponents {MS_SSIM_BETAS}, "
        "window, k1 and k2 as ssim, negative terms counted as 0",
        averaging="mean over frames, then clips",
        min_side=16 * SSIM_WINDOW,  # torchmetrics halves frames four times, and the window must fit
        function=ms_ssim,
        is_default=True,
    )
)


def flicker(*, reconstruction: Video, target: Video) -> Tensor:
    """Return `telecine.losses.temporal_difference` of each clip, `(B,)` in [0, 4]; smaller is better."""
    values = []
    for recon_clip, target_clip in zip(reconstruction.split(1), target.split(1), strict=True):
        values.append(temporal_difference(reconstruction=recon_clip, target=target_clip))
    return torch.stack(values)


register(
    ClipMetric(
        name="flicker",
        definition="mean absolute difference between the frame-to-frame differences of reconstruction and input, "
        "in [-1, 1]",
        better="smaller",
        min_frames=2,
        function=flicker,
        is_default=True,
    )
)


def sharpness(*, reconstruction: Video, target: Video) -> Tensor:
    """Return the edge power of each reconstruction divided by that of its target, `(B,)`; nearest to 1 is better.

    Edge power is the mean square of the differences between neighbouring pixels, along rows and columns. Below 1 the
    reconstruction is blurrier than the target. Above 1 it contains noise, ringing or invented detail. The rounding
    variance is added to both powers, so that flat clips have a finite value.
    """
    return (_edge_power(reconstruction) + _ROUNDING_VARIANCE) / (
        _edge_power(target) + _ROUNDING_VARIANCE
    )


def _edge_power(video: Video) -> Tensor:
    vertical = video.diff(dim=-2).square().flatten(1).mean(1)
    horizontal = video.diff(dim=-1).square().flatten(1).mean(1)
    return vertical + horizontal


register(
    ClipMetric(
        name="sharpness",
        definition="mean squared difference of neighbouring pixels in the reconstruction over that in the input",
        better="nearest to 1",
        min_side=2,
        function=sharpness,
        is_default=True,
    )
)


def grid_excess(*, reconstruction: Video, target: Video, period: int) -> Tensor:
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

    Args:
        reconstruction: `(B, C, T, H, W)` in [-1, 1], of at least 32 x 32 pixels.
        target: Of the same shape.
        period: Distance of the grid's lines in pixels; a divisor of 32.
    """
    excess = []
    for recon_clip, target_clip in zip(reconstruction, target, strict=True):
        recon_patches = _grey_patches(recon_clip)
        target_patches = _grey_patches(target_clip)
        num_kept = max(1, round(_FLAT_FRACTION * len(target_patches)))
        flattest = target_patches.var(dim=(1, 2)).topk(num_kept, largest=False).indices
        recon_ratio = _peak_ratio(recon_patches[flattest], period).log10()
        target_ratio = _peak_ratio(target_patches[flattest], period).log10()
        excess.append(10 * (recon_ratio - target_ratio).mean())
    return torch.stack(excess)


def _grey_patches(clip: Tensor) -> Tensor:
    """Return the grey patches `(N, 32, 32)` of a clip `(C, T, H, W)`, without overlap."""
    grey = clip.mean(0)
    return (
        grey.unfold(1, _GRID_PATCH, _GRID_PATCH).unfold(2, _GRID_PATCH, _GRID_PATCH).flatten(0, 2)
    )


def _peak_ratio(patches: Tensor, period: int) -> Tensor:
    """Return each patch's power at a period over the geometric mean of the powers at the neighbouring frequencies."""
    detrended = _without_plane(patches)
    rows = torch.fft.rfft(detrended, dim=2, norm="ortho").abs().square().mean(dim=1)
    columns = torch.fft.rfft(detrended, dim=1, norm="ortho").abs().square().mean(dim=2)
    # (N, 17); that of white noise is its variance.
    power = (rows + columns) / 2 + _ROUNDING_VARIANCE
    frequency = _GRID_PATCH // period
    neighbours = [frequency - 1]
    if frequency + 1 < power.shape[1]:
        neighbours.append(frequency + 1)
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


for grid_period in GRID_PERIODS:
    register(
        ClipMetric(
            name=f"grid_{grid_period}",
            unit="dB",
            definition=f"spectral power of grey rows and columns at a period of {grid_period} pixels over the "
            "geometric mean of that at the frequencies beside it, in the reconstruction, over the same in the input",
            averaging=f"mean over the {_FLAT_FRACTION:.0%} flattest patches of {_GRID_PATCH} x {_GRID_PATCH} of the "
            "input's frames (less their mean and slope), then clips",
            better="nearest to 0",
            min_side=_GRID_PATCH,
            function=partial(grid_excess, period=grid_period),
            is_default=True,
        )
    )
