"""Pixel metrics against independent implementations.

Tests import them where they use them: each process of `make test` would wait a second for them.
"""

import sys

import numpy as np
import pytest
import torch

from telecine.evaluation.metrics.pixels import (
    MS_SSIM_BETAS,
    flicker,
    ms_ssim,
    psnr,
    sharpness,
    ssim,
    ssim_map,
)
from telecine.evaluation.metrics.published_pixels import (
    psnr_bytes,
    psnr_frames_epsilon,
    psnr_modulo,
    ssim_uniform,
    ssim_valid,
)


def frames(num=2, side=176, noise=0.3, seed=0):
    """Return noisy frames `(N, 3, side, side + 8)` and the frames without noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, side // 8, side // 8, generator=generator)
    target = (
        torch.nn.functional.interpolate(coarse, (side, side + 8), mode="bicubic").clamp(0, 1) * 2
        - 1
    )
    return (target + noise * torch.randn(target.shape, generator=generator)).clamp(-1, 1), target


def in_numpy(image):
    return (image.double().numpy() + 1) / 2


class TestPsnr:
    def test_equals_scikit_image(self):
        from skimage.metrics import peak_signal_noise_ratio

        recon, target = frames()
        expected = [
            peak_signal_noise_ratio(b.double().numpy(), a.double().numpy(), data_range=2.0)
            for a, b in zip(recon, target, strict=True)
        ]
        assert psnr(reconstruction=recon, target=target).tolist() == pytest.approx(
            expected, abs=1e-4
        )

    def test_known_values(self):
        target = torch.zeros(1, 3, 2, 16, 16)
        assert psnr(reconstruction=target + 0.2, target=target).item() == pytest.approx(
            20.0, abs=1e-4
        )
        assert psnr(reconstruction=target, target=target).item() == pytest.approx(100.0, abs=1e-4)


def blur(images):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images, sigma=(0, 1.5, 1.5), truncate=3.5, mode="mirror")


def similarity(x, y):
    """Return luminance and contrast of equation 13 of Wang et al. 2004 at every pixel, with reflected borders."""
    mu_x = blur(x)
    mu_y = blur(y)
    var_x = blur(x * x) - mu_x**2
    var_y = blur(y * y) - mu_y**2
    cov = blur(x * y) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + 0.01**2) / (mu_x**2 + mu_y**2 + 0.01**2)
    return luminance, (2 * cov + 0.03**2) / (var_x + var_y + 0.03**2)


def numpy_ssim(x, y):
    luminance, contrast = similarity(x, y)
    return float((luminance * contrast).mean())


def halve(images):
    channels, rows, columns = images.shape
    even = images[:, : rows // 2 * 2, : columns // 2 * 2]
    return even.reshape(channels, rows // 2, 2, columns // 2, 2).mean((2, 4))


def numpy_ms_ssim(x, y):
    """Equation 7 of Wang et al. 2003 with the borders of torchmetrics: only the last scale counts them."""
    means = []
    for _ in range(4):
        means.append(similarity(x, y)[1][:, 5:-5, 5:-5].mean())
        x = halve(x)
        y = halve(y)
    means.append(numpy_ssim(x, y))
    return float(np.prod(np.maximum(means, 0) ** np.array(MS_SSIM_BETAS)))


@pytest.mark.parametrize(
    ("metric", "reference", "side"),
    [(ssim, numpy_ssim, 16), (ssim, numpy_ssim, 48), (ms_ssim, numpy_ms_ssim, 176)],
)
class TestSimilarity:
    def test_equals_the_definition(self, metric, reference, side):
        recon, target = frames(side=side)
        expected = [reference(in_numpy(a), in_numpy(b)) for a, b in zip(recon, target, strict=True)]
        assert metric(reconstruction=recon, target=target).tolist() == pytest.approx(
            expected, abs=1e-5
        )

    def test_identical_frames_score_1_and_noise_scores_lower(self, metric, reference, side):
        pairs = [frames(side=side, noise=noise) for noise in (0, 0.1, 0.3, 0.9)]
        scores = [
            metric(reconstruction=recon, target=target).mean().item() for recon, target in pairs
        ]
        assert scores[0] == pytest.approx(1, abs=1e-5)
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_has_the_bits_of_torchmetrics(dtype):
    from torchmetrics.functional.image import structural_similarity_index_measure

    recon, target = (batch.to(dtype) for batch in frames(side=48))
    _, expected = structural_similarity_index_measure(
        (recon + 1) / 2,
        (target + 1) / 2,
        sigma=1.5,
        reduction="none",
        data_range=1.0,
        return_full_image=True,
    )
    assert torch.equal(ssim_map(reconstruction=recon, target=target), expected)


def test_ssim_is_measured_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # an import of it fails
    recon, target = frames(side=16)
    assert ssim(reconstruction=recon, target=target).shape == (2,)


def test_negative_terms_of_ms_ssim_count_as_0():
    _, target = frames(num=1)
    assert ms_ssim(reconstruction=-target, target=target).item() == 0.0


class TestSharpness:
    def test_equals_numpy(self):
        recon, target = (clip[None].transpose(1, 2) for clip in frames(side=32))

        def power(video):
            return sum(
                (np.diff(video.double().numpy(), axis=axis) ** 2).mean() for axis in (-1, -2)
            )

        value = sharpness(reconstruction=recon, target=target).item()
        assert value == pytest.approx(power(recon) / power(target), rel=1e-3)

    def test_blur_is_below_1_and_noise_above(self):
        recon, target = (clip[None].transpose(1, 2) for clip in frames(side=32))
        blurred = torch.nn.functional.avg_pool3d(
            recon, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False
        )
        assert sharpness(reconstruction=blurred, target=recon) < 0.5
        assert sharpness(reconstruction=recon, target=target) > 1.5
        flat = torch.zeros(2, 3, 2, 16, 16)
        assert sharpness(reconstruction=flat, target=flat).tolist() == [1, 1]


class TestFlicker:
    def test_equals_a_loop_over_clips(self):
        generator = torch.Generator().manual_seed(0)
        recon, target = torch.rand(2, 2, 3, 4, 8, 8, generator=generator) * 2 - 1
        expected = []
        for a, b in zip(recon.double().numpy(), target.double().numpy(), strict=True):
            steps = [abs((a[:, t + 1] - a[:, t]) - (b[:, t + 1] - b[:, t])) for t in range(3)]
            expected.append(np.mean(steps))
        assert flicker(reconstruction=recon, target=target).tolist() == pytest.approx(
            expected, abs=1e-6
        )

    def test_a_constant_offset_does_not_count(self):
        target = torch.zeros(1, 3, 4, 8, 8)
        alternating = torch.tensor([0.1, -0.1, 0.1, -0.1]).view(1, 1, 4, 1, 1).expand_as(target)
        assert flicker(reconstruction=target + 0.5, target=target).item() == 0
        assert flicker(reconstruction=alternating, target=target).item() == pytest.approx(0.2)


class TestPublished:
    """Definitions of published protocols, against what their code computes."""

    def test_psnr_of_vidtok(self):
        """`-10 * torch.log10(mse + 1e-8)` of each frame in [0, 1]."""
        recon, target = frames(side=32)
        errors = [
            np.square(in_numpy(a) - in_numpy(b)).mean() for a, b in zip(recon, target, strict=True)
        ]
        expected = [-10 * np.log10(error + 1e-8) for error in errors]
        assert psnr_frames_epsilon(reconstruction=recon, target=target).tolist() == pytest.approx(
            expected, abs=1e-4
        )
        assert psnr_frames_epsilon(reconstruction=target, target=target).tolist() == pytest.approx(
            [80, 80], abs=1e-4
        )

    def test_psnr_of_tokenbench(self):
        """`((input0 - input1) ** 2).mean()` of 8-bit arrays, whose operations wrap around at 256."""
        recon, target = (torch.stack(tuple(part), 1)[None] for part in frames(side=32))
        a, b = (np.round((video.numpy() + 1) * 127.5).astype(np.uint8) for video in (recon, target))
        epsilon = np.finfo(np.float32).eps
        for metric, mse in (
            (psnr_modulo, ((a - b) ** 2).mean()),
            (psnr_bytes, np.square(a.astype(float) - b.astype(float)).mean()),
        ):
            expected = 20 * np.log10(255 / (np.sqrt(mse) + epsilon))
            values = metric(reconstruction=recon, target=target)
            assert values.tolist() == pytest.approx([expected], abs=1e-4)

    def test_ssim_of_vidtok_and_wf_vae(self):
        """scikit-image with the settings of Wang et al. leaves out the same border."""
        from skimage.metrics import structural_similarity

        recon, target = frames(side=40)
        settings = {
            "gaussian_weights": True,
            "sigma": 1.5,
            "use_sample_covariance": False,
            "data_range": 1.0,
        }
        expected = [
            structural_similarity(in_numpy(b), in_numpy(a), channel_axis=0, **settings)
            for a, b in zip(recon, target, strict=True)
        ]
        assert ssim_valid(reconstruction=recon, target=target).tolist() == pytest.approx(
            expected, abs=1e-5
        )

    def test_ssim_of_tokenbench(self):
        """`structural_similarity(..., data_range=255, channel_axis=-1)` of 8-bit frames."""
        from skimage.metrics import structural_similarity

        recon, target = frames(side=40)
        a, b = ((frame.permute(0, 2, 3, 1).numpy() + 1) * 127.5 for frame in (recon, target))
        pairs = zip(np.round(a).astype(np.uint8), np.round(b).astype(np.uint8), strict=True)
        expected = [
            structural_similarity(*pair, data_range=255.0, channel_axis=-1) for pair in pairs
        ]
        assert ssim_uniform(reconstruction=recon, target=target).tolist() == pytest.approx(
            expected, abs=1e-6
        )
