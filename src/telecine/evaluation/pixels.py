"""How alike the pixels of two videos are: PSNR, SSIM, MS-SSIM, and how sharp one is beside the other."""

from __future__ import annotations

import torch
from torch import Tensor

from telecine.evaluation.definitions import (
    MAX_PSNR,
    MS_SSIM_BETAS,
    MS_SSIM_SIDE,
    ROUNDING_VARIANCE,
    SSIM_SIGMA,
    SSIM_WINDOW,
)
from telecine.shapes import VALUE_RANGE, Frames, Video, argument_error


def psnr(*, reconstruction: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each clip or frame, `(B,)` in dB, at most 100; larger is better.

    One mean squared error is taken over all of a clip's pixels, so a bad frame weighs what it should, and the peak is
    the width of [-1, 1], which is 2. NaN stays NaN.
    """
    peak = VALUE_RANGE[1] - VALUE_RANGE[0]
    error = (reconstruction - target).square().flatten(1).mean(1)
    return 10 * torch.log10(peak**2 / error.clamp(min=peak**2 * 10 ** (-MAX_PSNR / 10)))


def ssim(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the structural similarity of each frame, `(N,)` in [-1, 1], 1 for identical ones; larger is better.

    Frames in [-1, 1] are mapped to [0, 1] first: SSIM's luminance term is not invariant to an offset, and published
    values are of non-negative images (Wang et al., doi 10.1109/TIP.2003.819861). As in torchmetrics every pixel counts,
    the window mirrored at the border; the paper and scikit-image leave out a border of 5 pixels.

    Raises:
        ValueError: a frame is smaller than the 11 x 11 window.
    """
    # torchmetrics takes three seconds to import, which `telecine --help` must not wait for.
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_side(target, SSIM_WINDOW)
    preds, goal = _in_0_1(reconstruction), _in_0_1(target)
    # Releases differ in whether the border counts, so the mean is taken here, over the whole map.
    _, full_map = structural_similarity_index_measure(
        preds, goal, sigma=SSIM_SIGMA, reduction="none", data_range=1.0, return_full_image=True
    )
    return full_map.flatten(1).mean(1)


def ms_ssim(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the multi-scale structural similarity of each frame, `(N,)` in [0, 1]; larger is better.

    It is torchmetrics' (Wang et al., doi 10.1109/ACSSC.2003.1292216): contrast and structure at five scales, each half
    the size of the one before, and luminance at the last, multiplied with the paper's exponents; terms below 0, which
    have no such power, count as 0. Frames are mapped to [0, 1] first.

    Raises:
        ValueError: a frame is smaller than 176 x 176, at which the window does not fit the last scale.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    _check_side(target, MS_SSIM_SIDE)
    return multiscale_structural_similarity_index_measure(
        _in_0_1(reconstruction),
        _in_0_1(target),
        sigma=SSIM_SIGMA,
        kernel_size=SSIM_WINDOW,
        reduction="none",
        data_range=1.0,
        betas=MS_SSIM_BETAS,
        normalize="relu",
    )


def sharpness(*, reconstruction: Video, target: Video) -> Tensor:
    """Return the power of each clip's edges over that of its target's, `(B,)`, 1 for equal ones.

    The power is the mean square of the differences between neighbouring pixels, in rows and columns. Below 1 the
    reconstruction is blurrier; above 1 it has noise, ringing or invented detail. Rounding noise is added to both, so
    that a flat clip has a value.
    """
    return (_edge_power(reconstruction) + ROUNDING_VARIANCE) / (_edge_power(target) + ROUNDING_VARIANCE)


def _edge_power(video: Video) -> Tensor:
    return video.diff(dim=-2).square().flatten(1).mean(1) + video.diff(dim=-1).square().flatten(1).mean(1)


def _in_0_1(frames: Frames) -> Frames:
    return 0.5 * (frames + 1)


def _check_side(target: Frames, least: int) -> None:
    if min(target.shape[-2:]) < least:
        remedy = "Evaluate at a larger size."
        raise argument_error("target", f"frames of at least {least} x {least}", target, remedy)
