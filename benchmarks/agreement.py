"""How far the metrics are from implementations that others wrote: a Markdown table, on real clips made worse by hand.

    python benchmarks/agreement.py

Needs the extras `train`, `demo` and `dev`. The first of each real clip's frames are blurred and get noise; each metric
is computed by telecine and by another implementation, in its own precision, and the largest difference over the clips
is shown. What nobody else has is compared with the formula in NumPy, in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import lpips
import numpy as np
import scipy.linalg
import torch
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
from telecine.evaluation.frechet import frechet_distance
from telecine.evaluation.grid import grid_excess
from telecine.evaluation.pixel_metrics import flicker, ms_ssim, psnr, sharpness, ssim
from telecine.perceptual import load_backbone

Pair = tuple[Tensor, Tensor]
Score = Callable[[Tensor, Tensor], float]


def pairs(num_frames: int, height: int, width: int) -> list[Pair]:
    """Return (reconstruction, target) for each real clip, `(T, 3, H, W)` in [-1, 1]."""
    found = []
    for index, path in enumerate(sample_videos()):
        frames = read_clip(index_video(path), 0, num_frames, size=(height, width))
        target = video_from_bytes(frames).transpose(0, 1)
        noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(index))
        blurred = F.avg_pool2d(target, 3, stride=1, padding=1, count_include_pad=False)
        found.append(((blurred + 0.05 * noise).clamp(-1, 1), target))
    return found


def in_0_1(frames: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1]."""
    return (frames + 1) / 2


def of_clip(metric: Callable[..., Tensor], **settings: int) -> Score:
    """Return a metric of clips as a function of two clips' frames."""

    def score(x: Tensor, y: Tensor) -> float:
        video, target = (frames.transpose(0, 1)[None] for frames in (x, y))
        return float(metric(reconstruction=video, target=target, **settings))

    return score


def of_frames(metric: Callable[..., Tensor]) -> Score:
    """Return the mean of a metric over frames as a function of two clips' frames."""
    return lambda x, y: float(metric(reconstruction=x, target=y).mean())


def skimage_ssim(x: Tensor, y: Tensor) -> float:
    """Return scikit-image's SSIM without the border of 5 pixels, where it mirrors differently."""
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


def published_lpips(net: str) -> Score:
    """Return LPIPS as its authors' package computes it, with the same backbone."""
    module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    weights = load_backbone(net)
    state = {key: weights[f"features.{key.split('.', 1)[1]}"] for key in module.net.state_dict()}
    module.net.load_state_dict(state)

    def score(x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return float(module(x, y).mean())

    return score


def numpy_flicker(x: Tensor, y: Tensor) -> float:
    """Return the mean absolute difference of frame-to-frame differences."""
    a, b = (np.diff(frames.double().numpy(), axis=0) for frames in (x, y))
    return float(np.abs(a - b).mean())


def numpy_sharpness(x: Tensor, y: Tensor) -> float:
    """Return the ratio of the mean squared differences of neighbours."""

    def power(frames: Tensor) -> float:
        rounding = (2 / 255) ** 2 / 12
        return sum((np.diff(frames.double().numpy(), axis=axis) ** 2).mean() for axis in (-1, -2)) + rounding

    return power(x) / power(y)


def numpy_grid(x: Tensor, y: Tensor) -> float:
    """Return the excess of a grid of 8 pixels, by a full Fourier transform of each patch."""
    size = 32
    patches: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for frames, kept in zip((x, y), patches, strict=True):
        grey = frames.double().numpy().mean(1)
        for frame in grey:
            for top in range(0, frame.shape[0] - size + 1, size):
                kept += [frame[top : top + size, left : left + size] for left in range(0, frame.shape[1] - 31, size)]
    order = np.argsort([patch.var() for patch in patches[1]])[: round(len(patches[1]) / 4)]

    def prominence(patch: np.ndarray) -> float:
        sides = np.arange(size)
        plane = np.stack([np.ones((size, size)), np.tile(sides[:, None], size), np.tile(sides, (size, 1))])
        plane = plane.reshape(3, -1).T
        level = (patch.ravel() - plane @ np.linalg.lstsq(plane, patch.ravel(), rcond=None)[0]).reshape(size, size)
        rows, columns = ((np.abs(np.fft.fft(level, axis=1 - axis)) ** 2).mean(axis) / size for axis in (0, 1))
        power = (rows + columns) / 2 + (2 / 255) ** 2 / 12
        return float(power[4] / np.sqrt(power[3] * power[5]))

    ratios = [prominence(patches[0][index]) / prominence(patches[1][index]) for index in order]
    return float(np.mean(10 * np.log10(ratios)))


def vectors(frames: Tensor) -> Tensor:
    """Return a vector for each of many patches of frames, to have samples for a Frechet distance."""
    return F.unfold(frames, 4, stride=4).transpose(1, 2).reshape(-1, 48)


def scipy_frechet(x: Tensor, y: Tensor) -> float:
    """Return the Frechet distance with scipy's root of a product."""
    a, b = (vectors(frames).double().numpy() for frames in (x, y))
    s, r = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + r - 2 * scipy.linalg.sqrtm(s @ r).real))


def rows() -> list[tuple[str, Score, str, Score]]:
    """Return each comparison: metric, telecine's, the name of the other, the other."""
    settings = {"sigma": 1.5, "kernel_size": 11, "data_range": 1.0}
    return [
        ("psnr", of_clip(psnr), "torchmetrics", lambda x, y: float(torchmetrics_psnr(x, y, data_range=2.0))),
        (
            "psnr",
            of_clip(psnr),
            "scikit-image",
            lambda x, y: float(peak_signal_noise_ratio(y.double().numpy(), x.double().numpy(), data_range=2.0)),
        ),
        (
            "ssim",
            of_frames(ssim),
            "torchmetrics",
            lambda x, y: float(structural_similarity_index_measure(in_0_1(x), in_0_1(y), **settings)),
        ),
        ("ssim", of_frames(ssim), "scikit-image (other borders)", skimage_ssim),
        (
            "ms_ssim",
            of_frames(ms_ssim),
            "torchmetrics",
            lambda x, y: float(multiscale_structural_similarity_index_measure(in_0_1(x), in_0_1(y), **settings)),
        ),
        *(
            (f"lpips_{net}", of_frames(LPIPS(net)), "lpips, the authors' package", published_lpips(net))
            for net in ("vgg", "alex")
        ),
        ("flicker", of_clip(flicker), "NumPy", numpy_flicker),
        ("sharpness", of_clip(sharpness), "NumPy", numpy_sharpness),
        ("grid_8", of_clip(grid_excess, period=8), "NumPy", numpy_grid),
        (
            "Frechet distance",
            lambda x, y: frechet_distance(features=vectors(x), reference=vectors(y)),
            "SciPy's sqrtm",
            scipy_frechet,
        ),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="Two frames of the smallest size, to see that it runs.")
    smoke = parser.parse_args().smoke
    clips = pairs(2, 176, 176) if smoke else pairs(5, 256, 256)
    print("| metric | telecine, mean over clips | other implementation | largest difference |")
    print("|---|---|---|---|")
    for name, ours, other, theirs in rows():
        values = [(ours(*pair), theirs(*pair)) for pair in clips]
        mean = sum(value for value, _ in values) / len(values)
        print(f"| {name} | {mean:.4f} | {other} | {max(abs(a - b) for a, b in values):.1e} |")


if __name__ == "__main__":
    main()
