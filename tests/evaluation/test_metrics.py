"""The metrics against independent implementations, and what they do with odd input."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from telecine.evaluation import METRIC_DEFINITIONS, ReconstructionMetrics, mean_over_clips
from telecine.evaluation.metrics import BUILT_IN, applicable


class MeanDistance(nn.Module):
    """Stands in for LPIPS: one absolute difference per frame; remembers how many frames it saw at once."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, *, reconstruction, target):
        self.seen.append(len(target))
        return (reconstruction - target).abs().flatten(1).mean(1)


def pair(batch=3, frames=5, height=17, width=23, noise=0.2):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(batch, 3, frames, height, width, generator=generator) * 1.6 - 0.8
    scale = noise * torch.arange(1, batch + 1).view(-1, 1, 1, 1, 1)
    return target + scale * torch.rand(target.shape, generator=generator) - scale / 2, target


def measured(recon, target, **settings):
    metrics = ReconstructionMetrics(**settings)
    metrics.update(reconstruction=recon, target=target)
    return metrics


def numpy_psnr(recon, target):
    """Peak signal-to-noise ratio pixel by pixel, in Python's floats."""
    total, count = 0.0, 0
    for a, b in zip(np.clip(recon.numpy(), -1, 1).ravel().tolist(), target.numpy().ravel().tolist(), strict=True):
        total += (a - b) ** 2
        count += 1
    return 20 * math.log10(2) - 10 * math.log10(total / count)


class TestPsnr:
    def test_equals_a_loop(self):
        recon, target = pair(height=11, width=12)
        values = [clip["psnr"] for clip in measured(recon, target).per_clip()]
        assert values == pytest.approx([numpy_psnr(*clips) for clips in zip(recon, target, strict=True)], abs=1e-4)

    def test_equals_torchmetrics(self):
        recon, target = pair()
        clamped = recon.clamp(-1, 1)
        reference = [PeakSignalNoiseRatio(data_range=2.0)(*clips).item() for clips in zip(clamped, target, strict=True)]
        assert [clip["psnr"] for clip in measured(recon, target).per_clip()] == pytest.approx(reference, abs=1e-4)

    def test_identical_clips_are_capped(self):
        _, target = pair()
        assert measured(target, target).compute()["psnr"] == pytest.approx(100.0, abs=1e-4)

    def test_the_reconstruction_is_clamped(self):
        target = torch.ones(1, 3, 1, 16, 16)
        assert measured(target * 50, target).compute()["psnr"] == pytest.approx(100.0, abs=1e-4)

    def test_a_known_value(self):
        target = torch.zeros(1, 3, 2, 16, 16)
        assert measured(target + 0.2, target).compute()["psnr"] == pytest.approx(20.0, abs=1e-4)


class TestSsim:
    def test_equals_torchmetrics_on_frames_in_0_1(self):
        recon, target = pair()
        expected = []
        for a, b in zip(recon.clamp(-1, 1), target, strict=True):
            frames = [(clip.transpose(0, 1) + 1) / 2 for clip in (a, b)]
            each = [
                StructuralSimilarityIndexMeasure(sigma=1.5, kernel_size=11, data_range=1.0)(x[None], y[None]).item()
                for x, y in zip(*frames, strict=True)
            ]
            expected.append(sum(each) / len(each))
        assert [clip["ssim"] for clip in measured(recon, target).per_clip()] == pytest.approx(expected, abs=1e-5)

    def test_equals_the_definition(self):
        recon, target = pair(batch=1, frames=1, height=13, width=12)
        x, y = ((clip[0, :, 0].double().numpy() + 1) / 2 for clip in (recon.clamp(-1, 1), target))
        assert measured(recon, target).compute()["ssim"] == pytest.approx(numpy_ssim(x, y), abs=1e-5)

    def test_identical_frames_score_1(self):
        _, target = pair()
        assert measured(target, target).compute()["ssim"] == pytest.approx(1.0, abs=1e-5)

    @pytest.mark.parametrize(("height", "width"), [(10, 16), (16, 10)])
    def test_small_frames_are_refused(self, height, width):
        small = torch.zeros(1, 3, 2, height, width)
        with pytest.raises(ValueError, match="at least 11 x 11"):
            measured(small, small)


def numpy_ssim(x, y):
    """Wang et al.'s equation 13 at every pixel, mirrored at the border, in float64."""
    x, y = (np.pad(image, ((0, 0), (5, 5), (5, 5)), mode="reflect") for image in (x, y))
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for channel in range(x.shape[0]):
        for row in range(x.shape[1] - 10):
            for column in range(x.shape[2] - 10):
                a, b = (image[channel, row : row + 11, column : column + 11] for image in (x, y))
                mu_a, mu_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * a * a).sum() - mu_a**2, (window * b * b).sum() - mu_b**2
                cov = (window * a * b).sum() - mu_a * mu_b
                numerator = (2 * mu_a * mu_b + c1) * (2 * cov + c2)
                values.append(numerator / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(values))


class TestPerceptual:
    def test_is_the_mean_over_frames_of_the_clamped_reconstruction(self):
        recon, target = pair(noise=1.0)
        values = measured(recon, target, perceptual={"lpips_alex": MeanDistance()}).per_clip()
        expected = (recon.clamp(-1, 1) - target).abs().flatten(1).mean(1)
        assert [clip["lpips_alex"] for clip in values] == pytest.approx(expected.tolist(), abs=1e-6)

    def test_sees_a_bounded_number_of_frames(self):
        distance = MeanDistance()
        measured(*pair(batch=2, frames=7), perceptual={"lpips_vgg": distance}, frames_per_chunk=4)
        assert distance.seen == [4, 4, 4, 2]

    @pytest.mark.parametrize("frames_per_chunk", [1, 4, 100])
    def test_the_chunk_size_changes_nothing(self, frames_per_chunk):
        whole = measured(*pair(), perceptual={"lpips_vgg": MeanDistance()}).compute()
        chunked = measured(*pair(), perceptual={"lpips_vgg": MeanDistance()}, frames_per_chunk=frames_per_chunk)
        assert chunked.compute() == pytest.approx(whole, abs=1e-6)

    def test_keeps_no_graph(self):
        distance = nn.Module()
        distance.weight = nn.Parameter(torch.ones(()))

        def forward(*, reconstruction, target):
            assert not torch.is_grad_enabled()
            return distance.weight * (reconstruction - target).flatten(1).mean(1)

        distance.forward = forward
        measured(*pair(), perceptual={"lpips_vgg": distance})

    def test_a_distance_that_averages_frames_is_refused(self):
        distance = nn.Module()
        distance.forward = lambda *, reconstruction, target: (reconstruction - target).mean()
        with pytest.raises(ValueError, match=r"`perceptual\['mine'\]` must be a module that returns shape \(8,\)"):
            measured(*pair(), perceptual={"mine": distance})


class TestAccumulation:
    def test_any_batching_gives_the_same(self):
        recon, target = pair()
        whole, single = measured(recon, target), ReconstructionMetrics()
        for a, b in zip(recon.split(1), target.split(1), strict=True):
            single.update(reconstruction=a, target=b)
        assert single.compute() == pytest.approx(whole.compute(), abs=1e-5)
        assert len(single.per_clip()) == 3

    def test_clips_of_different_lengths_weigh_the_same(self):
        metrics = ReconstructionMetrics()
        for frames, offset in ((1, 0.2), (9, 0.02)):
            target = torch.zeros(1, 3, frames, 16, 16)
            metrics.update(reconstruction=target + offset, target=target)
        assert metrics.compute()["psnr"] == pytest.approx(30.0, abs=1e-3)

    def test_compute_is_the_mean_of_per_clip(self):
        metrics = measured(*pair())
        assert metrics.compute() == mean_over_clips(metrics.per_clip())
        assert tuple(metrics.compute()) == metrics.names == ("psnr", "ssim")

    def test_per_clip_is_a_copy(self):
        metrics = measured(*pair())
        metrics.per_clip()[0]["psnr"] = -1.0
        assert metrics.per_clip()[0]["psnr"] > 0

    def test_half_precision_is_measured_in_float32(self):
        recon, target = (clip.bfloat16() for clip in pair())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            metrics = measured(recon, target)
        assert metrics.compute() == measured(recon.float(), target.float()).compute()

    def test_nothing_measured_is_an_error(self):
        with pytest.raises(ValueError, match="Call `update` before `compute`"):
            ReconstructionMetrics().compute()

    def test_nan_is_not_hidden(self):
        recon, target = pair(batch=2)
        recon[0, 0, 0, 0, 0] = math.nan
        values = measured(recon, target).per_clip()
        assert math.isnan(values[0]["psnr"])
        assert math.isnan(values[0]["ssim"])
        assert math.isfinite(values[1]["psnr"])


class TestRefusals:
    @pytest.mark.parametrize(
        ("recon", "target", "message"),
        [
            (torch.zeros(3, 2, 16, 16), torch.zeros(1, 3, 2, 16, 16), "`reconstruction` must be a floating-point"),
            (torch.zeros(1, 3, 2, 16, 16), torch.zeros(1, 3, 2, 16, 16).byte(), "`target` must be a floating-point"),
            (torch.zeros(1, 1, 2, 16, 16), torch.zeros(1, 1, 2, 16, 16), "`target` must be RGB"),
            (torch.zeros(1, 3, 1, 16, 16), torch.zeros(1, 3, 2, 16, 16), "`reconstruction` must be of the target's"),
            (torch.zeros(1, 3, 2, 16, 16), torch.full((1, 3, 2, 16, 16), 255.0), r"`target` must be in the range"),
        ],
    )
    def test_wrong_videos(self, recon, target, message):
        with pytest.raises(ValueError, match=message):
            measured(recon, target)

    def test_a_name_that_is_taken(self):
        with pytest.raises(ValueError, match="Rename it"):
            ReconstructionMetrics({"ssim": MeanDistance()})

    def test_empty_chunks(self):
        with pytest.raises(ValueError, match="`frames_per_chunk` must be at least 1"):
            ReconstructionMetrics(frames_per_chunk=0)


class TestBuiltIn:
    """Each has its own tests; here, what the accumulation does with them."""

    @pytest.mark.parametrize("name", BUILT_IN)
    def test_each_is_measured_alone_and_per_clip(self, name):
        recon, target = pair(batch=2, frames=2, height=176, width=176)
        values = measured(recon, target, metrics=[name])
        assert values.names == (name,)
        for index, clip in enumerate(values.per_clip()):
            alone = measured(recon[index, None], target[index, None], metrics=[name]).compute()
            assert clip == pytest.approx(alone, rel=1e-5)

    def test_all_together(self):
        recon, target = pair(batch=1, frames=2, height=176, width=176)
        distance = {"lpips_vgg": MeanDistance()}
        assert tuple(measured(recon, target, perceptual=distance, metrics=BUILT_IN).compute()) == (
            *BUILT_IN,
            "lpips_vgg",
        )
        assert len(BUILT_IN) == 9

    def test_an_unknown_one_is_named(self):
        with pytest.raises(ValueError, match=r"but got 'flickr'\. Did you mean `flicker`\?"):
            ReconstructionMetrics(metrics=["flickr"])


class TestCourseOverTheFrames:
    def test_is_that_of_each_frame_alone(self):
        recon, target = pair(batch=2, frames=4)
        curves = measured(recon, target, perceptual={"lpips_vgg": MeanDistance()}, frames_per_chunk=3).per_frame()
        assert [set(curve) for curve in curves] == [{"psnr", "ssim", "lpips_vgg"}] * 2
        for clip, curve in enumerate(curves):
            for frame in range(4):
                alone = measured(
                    recon[clip, None, :, frame, None],
                    target[clip, None, :, frame, None],
                    perceptual={"lpips_vgg": MeanDistance()},
                ).compute()
                assert {name: values[frame] for name, values in curve.items()} == pytest.approx(alone, abs=1e-4)

    def test_shows_a_frame_that_is_worse(self):
        target = torch.zeros(1, 3, 3, 16, 16)
        recon = target.clone()
        recon[:, :, 2] += 0.2
        (curves,) = measured(recon, target).per_frame()
        assert curves["psnr"] == pytest.approx([100, 100, 20], abs=1e-3)


def test_applicable_metrics_depend_on_length_and_size():
    names = [*BUILT_IN, "lpips_vgg", "lpips_alex"]
    every, absent = applicable(names, num_frames=2, height=176, width=200)
    assert (every, absent) == (names, {})
    few, absent = applicable(names, num_frames=1, height=20, width=200)
    assert few == ["psnr", "ssim", "sharpness", "lpips_vgg"]
    assert absent["lpips_alex"] == "needs frames of at least 31 x 31, not 20 x 200"
    assert absent["flicker"] == "needs at least 2 frames, not 1"
    assert len(absent) == 7


def test_every_metric_says_which_direction_is_better():
    assert set(METRIC_DEFINITIONS) == {*BUILT_IN, "lpips_vgg", "lpips_alex"}
    directions = {text.rpartition("; ")[2] for text in METRIC_DEFINITIONS.values()}
    assert directions == {f"{values} is better" for values in ("larger", "smaller", "nearest to 0", "nearest to 1")}


def test_the_command_line_waits_for_none_of_the_slow_imports():
    import subprocess
    import sys

    slow = ("torchmetrics", "matplotlib", "scipy")
    code = f"import sys, telecine.cli; assert not {{*{slow!r}}} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)
