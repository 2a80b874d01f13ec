"""Differences between telecine's metrics and other implementations, on degraded real clips: a Markdown table.

    python benchmarks/agreement.py

Needs the extras `train`, `demo` and `dev`. The first frames of each sample clip are blurred and get noise. Telecine and
another implementation compute each metric, each in its usual precision, and the table has the largest difference over
the clips. Metrics without another implementation are compared with their formula in NumPy, in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from image_distances import published_lpips
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)
from torchmetrics.functional.image import (
    peak_signal_noise_ratio as torchmetrics_psnr,
)

from telecine import LPIPS
from telecine.data import index_video, read_clip, sample_videos, video_from_bytes
from telecine.evaluation.metrics.frechet import frechet_distance
from telecine.evaluation.metrics.pixels import flicker, grid_excess, ms_ssim, psnr, sharpness, ssim

# The sample videos that the tables of docs/evaluation.md were made with.
NUM_VIDEOS = 3

Pair = tuple[Tensor, Tensor]
Score = Callable[[Tensor, Tensor], float]


def degraded_clips(num_frames: int, height: int, width: int) -> list[Pair]:
    """Return (reconstruction, target) for each real clip, `(T, 3, H, W)` in [-1, 1]."""
    pairs = []
    for index, path in enumerate(sample_videos()[:NUM_VIDEOS]):
        frames = read_clip(index_video(path), 0, num_frames, size=(height, width))
        target = video_from_bytes(frames).transpose(0, 1)
        noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(index))
        blurred = F.avg_pool2d(target, 3, stride=1, padding=1, count_include_pad=False)
        pairs.append(((blurred + 0.05 * noise).clamp(-1, 1), target))
    return pairs


def in_0_1(frames: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1]."""
    return (frames + 1) / 2


def clip_score(metric: Callable[..., Tensor], **settings: int) -> Score:
    """Return a metric of videos as a function of frames `(T, 3, H, W)`."""

    def score(x: Tensor, y: Tensor) -> float:
        video, target = (frames.transpose(0, 1)[None] for frames in (x, y))
        return float(metric(reconstruction=video, target=target, **settings))

    return score


def frame_score(metric: Callable[..., Tensor]) -> Score:
    """Return the mean over frames of a metric of images."""
    return lambda x, y: float(metric(reconstruction=x, target=y).mean())


def skimage_ssim(x: Tensor, y: Tensor) -> float:
    """Return scikit-image's SSIM, which pads the borders differently."""
    maps = [
        structural_similarity(
            *(in_0_1(frame).double().numpy() for frame in frames),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1]
        for frames in zip(y, x, strict=True)
    ]
    return float(np.mean(maps))


def lpips_score(net: str) -> Score:
    """Return LPIPS of its authors' package."""
    module = published_lpips(net)

    def score(x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return float(module(x, y).mean())

    return score


def numpy_flicker(x: Tensor, y: Tensor) -> float:
    """Return the mean absolute difference between the frame-to-frame differences of both clips."""
    a, b = (np.diff(frames.double().numpy(), axis=0) for frames in (x, y))
    return float(np.abs(a - b).mean())


def numpy_sharpness(x: Tensor, y: Tensor) -> float:
    """Return the ratio of the mean squared differences of neighbouring pixels."""

    def power(frames: Tensor) -> float:
        rounding = (2 / 255) ** 2 / 12
        return (
            sum((np.diff(frames.double().numpy(), axis=axis) ** 2).mean() for axis in (-1, -2))
            + rounding
        )

    return power(x) / power(y)


def numpy_grid(x: Tensor, y: Tensor) -> float:
    """Return the excess of a grid of 8 pixels from a full Fourier transform of each patch."""
    size = 32
    patches: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for frames, found in zip((x, y), patches, strict=True):
        grey = frames.double().numpy().mean(1)
        for frame in grey:
            for top in range(0, frame.shape[0] - size + 1, size):
                found += [
                    frame[top : top + size, left : left + size]
                    for left in range(0, frame.shape[1] - 31, size)
                ]
    order = np.argsort([patch.var() for patch in patches[1]])[: round(len(patches[1]) / 4)]

    def prominence(patch: np.ndarray) -> float:
        sides = np.arange(size)
        plane = np.stack(
            [np.ones((size, size)), np.tile(sides[:, None], size), np.tile(sides, (size, 1))]
        )
        plane = plane.reshape(3, -1).T
        level = (
            patch.ravel() - plane @ np.linalg.lstsq(plane, patch.ravel(), rcond=None)[0]
        ).reshape(size, size)
        rows, columns = (
            (np.abs(np.fft.fft(level, axis=1 - axis)) ** 2).mean(axis) / size for axis in (0, 1)
        )
        power = (rows + columns) / 2 + (2 / 255) ** 2 / 12
        return float(power[4] / np.sqrt(power[3] * power[5]))

    ratios = [prominence(patches[0][index]) / prominence(patches[1][index]) for index in order]
    return float(np.mean(10 * np.log10(ratios)))


def patch_vectors(frames: Tensor) -> Tensor:
    """Return the 4 x 4 patches of all frames as vectors `(N, 48)`, as samples of a Frechet distance."""
    return F.unfold(frames, 4, stride=4).transpose(1, 2).reshape(-1, 48)


def scipy_frechet(x: Tensor, y: Tensor) -> float:
    """Return the Frechet distance with SciPy's matrix square root."""
    a, b = (patch_vectors(frames).double().numpy() for frames in (x, y))
    s, r = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + r - 2 * scipy.linalg.sqrtm(s @ r).real)
    )


def comparisons() -> list[tuple[str, Score, str, Score]]:
    """Return the comparisons: name of the metric, telecine's function, name of the other, its function."""
    settings = {"sigma": 1.5, "kernel_size": 11, "data_range": 1.0}
    return [
        (
            "psnr",
            clip_score(psnr),
            "torchmetrics",
            lambda x, y: float(torchmetrics_psnr(x, y, data_range=2.0)),
        ),
        (
            "psnr",
            clip_score(psnr),
            "scikit-image",
            lambda x, y: float(
                peak_signal_noise_ratio(y.double().numpy(), x.double().numpy(), data_range=2.0)
            ),
        ),
        (
            "ssim",
            frame_score(ssim),
            "torchmetrics",
            lambda x, y: float(
                structural_similarity_index_measure(in_0_1(x), in_0_1(y), **settings)
            ),
        ),
        ("ssim", frame_score(ssim), "scikit-image (other borders)", skimage_ssim),
        (
            "ms_ssim",
            frame_score(ms_ssim),
            "torchmetrics",
            lambda x, y: float(
                multiscale_structural_similarity_index_measure(in_0_1(x), in_0_1(y), **settings)
            ),
        ),
        *(
            (
                f"lpips_{net}",
                frame_score(LPIPS(net)),
                "lpips, the authors' package",
                lpips_score(net),
            )
            for net in ("vgg", "alex")
        ),
        ("flicker", clip_score(flicker), "NumPy", numpy_flicker),
        ("sharpness", clip_score(sharpness), "NumPy", numpy_sharpness),
        ("grid_8", clip_score(grid_excess, period=8), "NumPy", numpy_grid),
        (
            "Frechet distance",
            lambda x, y: frechet_distance(features=patch_vectors(x), reference=patch_vectors(y)),
            "SciPy's sqrtm",
            scipy_frechet,
        ),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--smoke", action="store_true", help="two frames of the smallest size, to test the command"
    )
    smoke = parser.parse_args().smoke
    clips = degraded_clips(2, 176, 176) if smoke else degraded_clips(5, 256, 256)
    print("| metric | telecine, mean over clips | other implementation | largest difference |")
    print("|---|---|---|---|")
    for name, score, other, other_score in comparisons():
        values = [(score(*pair), other_score(*pair)) for pair in clips]
        mean = sum(value for value, _ in values) / len(values)
        print(f"| {name} | {mean:.4f} | {other} | {max(abs(a - b) for a, b in values):.1e} |")


if __name__ == "__main__":
    main()
