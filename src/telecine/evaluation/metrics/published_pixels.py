"""Metrics of pixel values as the code of published protocols computes them: PSNR and SSIM of other definitions."""

import torch
from torch import Tensor

from telecine.base.shapes import Frames, Video
from telecine.data import bytes_from_video
from telecine.evaluation.metrics.metric import ClipMetric, FrameMetric, register
from telecine.evaluation.metrics.pixels import SSIM_WINDOW, psnr, ssim_map, unit_range
from telecine.losses.reconstruction import MAX_PSNR

_PSNR_EPSILON = 1e-8  # VidTok adds it to the mean squared error of a frame in [0, 1]
_UNIFORM_WINDOW = 7  # pixels, the default of scikit-image's `structural_similarity`

register(
    FrameMetric(
        name="psnr_frames",
        unit="dB",
        definition=f"10 log10(1 / mean squared error of a frame in [0, 1]), at most {MAX_PSNR:g}",
        averaging="mean over frames, then clips",
        function=psnr,
    )
)


def psnr_frames_epsilon(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the PSNR of each frame, `(N,)` in dB, as VidTok: 1e-8 is added to the error in [0, 1]; at most 80."""
    error = (unit_range(reconstruction) - unit_range(target)).square().flatten(1).mean(1)
    return -10 * torch.log10(error + _PSNR_EPSILON)


register(
    FrameMetric(
        name="psnr_frames_epsilon",
        unit="dB",
        definition=f"-10 log10(mean squared error of a frame in [0, 1] + {_PSNR_EPSILON:g})",
        averaging="mean over frames, then clips",
        function=psnr_frames_epsilon,
    )
)


def psnr_bytes(*, reconstruction: Video, target: Video) -> Tensor:
    """Return the PSNR of each clip in 8 bits, `(B,)` in dB, as TokenBench documents it; larger is better."""
    return _psnr_of_byte_errors(_squared_byte_errors(reconstruction, target))


register(
    ClipMetric(
        name="psnr_bytes",
        unit="dB",
        definition="20 log10(255 / (root mean squared error of a clip in 8 bits + 1.2e-7))",
        function=psnr_bytes,
    )
)


def psnr_modulo(*, reconstruction: Video, target: Video) -> Tensor:
    """Return `psnr_bytes` with squared errors modulo 256, as TokenBench computes it: with 8-bit integers."""
    return _psnr_of_byte_errors(_squared_byte_errors(reconstruction, target).remainder(256))


register(
    ClipMetric(
        name="psnr_modulo",
        unit="dB",
        definition="as psnr_bytes, but each squared error modulo 256, because the published code subtracts and squares "
        "in 8 bits; above psnr_bytes where errors exceed 15 levels",
        function=psnr_modulo,
    )
)


def _squared_byte_errors(reconstruction: Video, target: Video) -> Tensor:
    return (bytes_from_video(reconstruction).int() - bytes_from_video(target).int()).square()


def _psnr_of_byte_errors(squared: Tensor) -> Tensor:
    root = squared.flatten(1).float().mean(1).sqrt()
    return 20 * torch.log10(255 / (root + torch.finfo(torch.float32).eps))


def ssim_valid(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return `ssim` without the border of 5 pixels, where the window leaves the frame, `(N,)`; as VidTok and WF-VAE."""
    border = SSIM_WINDOW // 2
    similarity = ssim_map(reconstruction=reconstruction, target=target)
    return similarity[..., border:-border, border:-border].flatten(1).mean(1)


register(
    FrameMetric(
        name="ssim_valid",
        definition=f"as ssim, without the border of {SSIM_WINDOW // 2} pixels",
        averaging="mean over channels, pixels, frames, then clips",
        min_side=SSIM_WINDOW,
        function=ssim_valid,
    )
)


def ssim_uniform(*, reconstruction: Frames, target: Frames) -> Tensor:
    """Return the structural similarity of each frame in 8 bits, `(N,)`, as TokenBench with scikit-image's defaults."""
    from skimage.metrics import structural_similarity

    recon_images = bytes_from_video(reconstruction.transpose(0, 1)).numpy(force=True)
    target_images = bytes_from_video(target.transpose(0, 1)).numpy(force=True)
    values = []
    for recon_image, target_image in zip(recon_images, target_images, strict=True):
        value = structural_similarity(
            recon_image, target_image, win_size=_UNIFORM_WINDOW, data_range=255, channel_axis=-1
        )
        values.append(value)
    return target.new_tensor(values)


register(
    FrameMetric(
        name="ssim_uniform",
        definition=f"scikit-image's default; 8-bit RGB frames, uniform window {_UNIFORM_WINDOW} x {_UNIFORM_WINDOW}, "
        f"sample covariance, without the border of {_UNIFORM_WINDOW // 2} pixels, k1 0.01, k2 0.03",
        averaging="mean over channels, pixels, frames, then clips",
        min_side=_UNIFORM_WINDOW,
        function=ssim_uniform,
    )
)
