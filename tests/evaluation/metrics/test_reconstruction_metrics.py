"""Accumulation of metrics over clips and frames, and which metrics exist."""

import math

import pytest
import torch
from torch import nn

from telecine.evaluation import ReconstructionMetrics, mean_over_clips
from telecine.evaluation.metrics import default_metrics
from telecine.evaluation.metrics.metric import METRICS, ClipMetric, register
from telecine.evaluation.metrics.pixels import GRID_PERIODS
from telecine.evaluation.protocols.configured import ConfiguredClips
from telecine.settings import ClipConfig, EvaluateConfig


class MeanDistance(nn.Module):
    """A perceptual distance: the mean absolute difference of each frame. Records how many frames each call gets."""

    def __init__(self):
        super().__init__()
        self.num_frames = []

    def forward(self, *, reconstruction, target):
        assert not torch.is_grad_enabled()
        self.num_frames.append(len(target))
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


def test_batches_do_not_matter():
    recon, target = pair(batch=2, frames=2, height=176, width=176)
    settings = {"perceptual": {"lpips_vgg": MeanDistance()}, "metrics": default_metrics()}
    whole = measured(recon, target, **settings)
    single = ReconstructionMetrics(**settings)
    for a, b in zip(recon.split(1), target.split(1), strict=True):
        single.update(reconstruction=a, target=b)
    assert tuple(whole.compute()) == (*default_metrics(), "lpips_vgg")
    for clip, expected in zip(whole.per_clip(), single.per_clip(), strict=True):
        assert clip == pytest.approx(expected, rel=1e-5)


def test_targets_that_may_be_of_another_range_are_warned_of():
    target = torch.rand(1, 3, 2, 16, 16)
    metrics = ReconstructionMetrics(metrics=["psnr"])
    with pytest.warns(UserWarning, match="no value below 0"):
        metrics.update(reconstruction=torch.zeros_like(target), target=target)


def test_clips_of_different_lengths_have_equal_weights():
    metrics = ReconstructionMetrics()
    for frames, offset in ((1, 0.2), (9, 0.02)):
        target = torch.zeros(1, 3, frames, 16, 16)
        metrics.update(reconstruction=target + offset, target=target)
    assert metrics.compute()["psnr"] == pytest.approx(30.0, abs=1e-3)
    assert metrics.compute() == mean_over_clips(metrics.per_clip())
    metrics.per_clip()[0]["psnr"] = -1.0
    assert metrics.per_clip()[0]["psnr"] > 0, "a copy"


def test_half_precision_is_measured_in_float32():
    recon, target = (clip.bfloat16() for clip in pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metrics = measured(recon, target)
    assert metrics.compute() == measured(recon.float(), target.float()).compute()


def test_nan_is_kept_in_its_clip():
    recon, target = pair(batch=2)
    recon[0, 0, 0, 0, 0] = math.nan
    broken, whole = measured(recon, target).per_clip()
    assert all(math.isnan(value) for value in broken.values())
    assert all(math.isfinite(value) for value in whole.values())


def test_frames_are_measured_in_chunks_each_as_if_alone():
    """The clamped reconstruction is measured. A clip has the mean over its frames, but for PSNR."""
    recon, target = pair(batch=2, frames=7, noise=1.0)
    distance = MeanDistance()
    metrics = measured(recon, target, perceptual={"mine": distance})
    assert distance.num_frames == [8, 6]
    errors = (recon.clamp(-1, 1) - target).abs().mean((1, 3, 4))
    for clip, (values, curves) in enumerate(
        zip(metrics.per_clip(), metrics.per_frame(), strict=True)
    ):
        assert [*curves] == ["psnr", "ssim", "mine"]
        assert values["mine"] == pytest.approx(errors[clip].mean().item(), abs=1e-6)
        assert curves["mine"] == pytest.approx(errors[clip].tolist(), abs=1e-6)
        for frame in range(7):
            alone = measured(
                recon[clip, None, :, frame, None], target[clip, None, :, frame, None]
            ).compute()
            assert {name: curves[name][frame] for name in alone} == pytest.approx(alone, abs=1e-4)


def test_channels_that_are_no_colours_are_measured_together():
    target = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(1, 2, 3, 16, 16)
    reconstruction = target.clone()
    reconstruction[:, 1] += 0.1
    values = measured(reconstruction, target).compute()
    assert set(values) == {"psnr", "ssim"}
    assert 27 < values["psnr"] < 30


class TestInvalidArguments:
    @pytest.mark.parametrize(
        ("recon", "target", "message"),
        [
            (
                torch.zeros(3, 2, 16, 16),
                torch.zeros(1, 3, 2, 16, 16),
                "`reconstruction` must be a floating-point",
            ),
            (
                torch.zeros(1, 3, 2, 16, 16),
                torch.zeros(1, 3, 2, 16, 16).byte(),
                "`target` must be a floating-point",
            ),
            (
                torch.zeros(1, 3, 1, 16, 16),
                torch.zeros(1, 3, 2, 16, 16),
                "`reconstruction` must be of `target`'s",
            ),
            (
                torch.zeros(1, 3, 2, 16, 16),
                torch.full((1, 3, 2, 16, 16), 255.0),
                r"`target` must be in the range",
            ),
        ],
    )
    def test_videos(self, recon, target, message):
        with pytest.raises(ValueError, match=message):
            measured(recon, target)

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("ssim", (1, 10, 16), "at least 11 x 11, not 10 x 16"),
            ("ssim_valid", (1, 16, 10), "at least 11 x 11, not 16 x 10"),
            ("ssim_uniform", (1, 6, 16), "at least 7 x 7"),
            ("ms_ssim", (1, 175, 176), "at least 176 x 176"),
            ("flicker", (1, 8, 8), "at least 2 frames, not 1"),
            ("sharpness", (1, 1, 8), "at least 2 x 2"),
            *((f"grid_{period}", (1, 31, 64), "at least 32 x 32") for period in GRID_PERIODS),
        ],
    )
    def test_clips_that_are_too_small_or_short(self, name, size, message):
        video = torch.full((1, 3, *size), -0.5)
        with pytest.raises(
            ValueError, match=f"`target` must be large and long enough for {name}, .*{message}"
        ):
            measured(video, video, metrics=["psnr", name])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"perceptual": {"ssim": MeanDistance()}}, "Rename it"),
            ({"metrics": ["flickr"]}, r"but got 'flickr' \(str\)\. Did you mean `flicker`\?"),
        ],
    )
    def test_names(self, settings, message):
        with pytest.raises(ValueError, match=message):
            ReconstructionMetrics(**settings)

    def test_a_distance_that_averages_frames(self):
        distance = nn.Module()
        distance.forward = lambda *, reconstruction, target: (reconstruction - target).mean()
        with pytest.raises(
            ValueError, match=r"`perceptual\['mine'\]` must be a module that returns shape \(8,\)"
        ):
            measured(*pair(), perceptual={"mine": distance})

    def test_no_clips(self):
        with pytest.raises(ValueError, match="Call `update` before `compute`"):
            ReconstructionMetrics().compute()


def load_metrics(clips, config):
    return ConfiguredClips(clips, 1).load_metrics([], config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("size", "absent"),
    [
        ((2, 176, 200), {}),
        ((2, 175, 200), {"ms_ssim": "needs frames of at least 176 x 176, not 175 x 200"}),
        (
            (1, 20, 200),
            {
                "ms_ssim": "needs frames of at least 176 x 176, not 20 x 200",
                "flicker": "needs at least 2 frames, not 1",
                "lpips_alex": "needs frames of at least 31 x 31, not 20 x 200",
                **{
                    f"grid_{period}": "needs frames of at least 32 x 32, not 20 x 200"
                    for period in GRID_PERIODS
                },
            },
        ),
    ],
)
def test_available_metrics_depend_on_length_and_size(fake_lpips, size, absent):
    metric_set = load_metrics(ClipConfig(*size), EvaluateConfig())
    assert metric_set.absent == absent
    names = {*default_metrics(), "lpips_vgg", "lpips_alex"}
    assert {*metric_set.pixel_metrics, *metric_set.perceptual} == names - absent.keys()


def test_lpips_needs_colours():
    metric_set = load_metrics(ClipConfig(channels=5), EvaluateConfig())
    assert metric_set.absent["lpips_vgg"] == "needs RGB frames, but clips have 5 channels"


@pytest.mark.parametrize(
    ("name", "value"), [("features", "transnetv2"), ("flow", "dis"), ("flat", True)]
)
def test_what_needs_colours_is_refused_without_them(name, value):
    clips = ClipConfig(channels=5)
    config = EvaluateConfig(**{name: value})
    message = (
        f"`{name}` must be left out unless clips have 1, 3 or 4 channels, but got {value} for 5"
    )
    with pytest.raises(ValueError, match=message):
        load_metrics(clips, config)


def test_a_metric_of_a_user_is_measured_by_its_name(monkeypatch):
    def largest_error(*, reconstruction, target):
        return (reconstruction - target).abs().amax((1, 2, 3, 4))

    mine = ClipMetric(
        name="largest_error",
        definition="the largest error",
        better="smaller",
        function=largest_error,
    )
    monkeypatch.setitem(METRICS, "largest_error", mine)  # which removes it afterwards
    assert register(mine).describe() == "the largest error; mean over clips; smaller is better"
    target = torch.zeros(1, 3, 1, 16, 16)
    assert measured(target + 0.5, target, metrics=["largest_error"]).compute() == {
        "largest_error": 0.5
    }


def test_metrics_of_rgba_are_of_all_channels_of_alpha_and_of_the_composite():
    target = torch.zeros(1, 4, 2, 16, 16)
    target[:, :3] = -0.5
    target[:, 3] = 1
    reconstruction = target.clone()
    reconstruction[:, 3] = 0  # half transparent
    values = measured(reconstruction, target).compute()
    assert list(values) == ["psnr", "ssim", "psnr_alpha", "psnr_composite"]
    assert values["psnr_alpha"] == pytest.approx(10 * math.log10(4))
    assert values["psnr"] == pytest.approx(10 * math.log10(4 / (1 / 4)))
    assert values["psnr_composite"] == pytest.approx(10 * math.log10(4 / 0.25**2))


def test_grey_is_measured_as_the_same_repeated():
    target, reconstruction = (torch.rand(1, 1, 2, 16, 16) * 2 - 1 for _ in range(2))
    repeated = (video.repeat(1, 3, 1, 1, 1) for video in (reconstruction, target))
    values = measured(reconstruction, target).compute()
    expected = measured(*repeated).compute()
    assert values == pytest.approx(expected, rel=1e-5)
