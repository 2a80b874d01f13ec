"""The best linear denoiser against its closed form, and a generator against it."""

import math

import pytest
import torch
from einops import rearrange

from telecine.data import index_video
from telecine.models import CausalVAE, DeterministicPosterior
from telecine.models.diffusers.denoiser import LatentDenoiser
from telecine.settings import CausalVAEConfig
from telecine.tools.latents.denoising import LEVELS, measure_denoiser, velocity_losses
from telecine.tools.latents.wiener import WienerFilter, largest_patch

TINY = CausalVAEConfig(4, 4, 4, 2, base_channels=8, blocks_per_level=1)
PATCH = (1, 2, 2)
SHAPE = (4, 1, 8, 8)


def covariance():
    """Return a covariance of the 16 values of a patch whose channels have unit variance."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64))[0]
    unscaled = basis @ torch.diag(torch.logspace(0.7, -1.5, 16, dtype=torch.float64)) @ basis.T
    scale = unscaled.diagonal().view(4, 4).mean(1).rsqrt().repeat_interleave(4)
    return scale[:, None] * unscaled * scale


def gaussian(num, seed):
    """Return normal latents whose patches have the covariance and are independent."""
    generator = torch.Generator().manual_seed(seed)
    rows = (
        torch.randn(num * 16, 16, generator=generator)
        @ torch.linalg.cholesky(covariance()).T.float()
    )
    return rearrange(rows, "(b h w) (c q r) -> b c 1 (h q) (w r)", h=4, w=4, q=2, r=2)


def expected(level):
    """Return the error of the best denoiser: the trace of (C^-1 + a^2 I / t^2)^-1 / t^2, with a = 1 - t."""
    precision = (
        covariance().inverse() + torch.eye(16, dtype=torch.float64) * (1 - level) ** 2 / level**2
    )
    return float(precision.inverse().trace() / 16 / level**2)


def test_the_filter_leaves_what_the_closed_form_says():
    fitted = WienerFilter.fit(gaussian(800, seed=1), PATCH)
    losses = velocity_losses(fitted.velocity, gaussian(800, seed=2).split(100), seed=0)
    assert len(losses) == len(LEVELS) == 11
    for level, loss in zip(LEVELS, losses, strict=True):
        assert loss == pytest.approx(expected(level), rel=0.02)


def test_the_mean_is_part_of_it():
    latents = 3 + 1e-3 * gaussian(40, seed=1)
    fitted = WienerFilter.fit(latents, PATCH)
    noisy = 0.5 * latents + 0.5 * torch.randn(
        latents.shape, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(
        noisy - 0.5 * fitted.velocity(noisy, 0.5), latents, atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    ("num", "patch"),
    [
        (3, (1, 1, 1)),
        (8, (1, 1, 2)),
        (32, (1, 2, 2)),
        (64, (2, 2, 2)),
        (300, (2, 2, 4)),
        (100_000, (2, 8, 8)),
    ],
)
def test_patches_are_as_large_as_the_latents_allow(num, patch):
    assert largest_patch(torch.empty(num, 4, 2, 8, 8, device="meta")) == patch


def test_too_few_latents_raise():
    with pytest.raises(ValueError, match="at least 128 positions for 4 channels"):
        WienerFilter.fit(torch.zeros(1, 4, 1, 2, 2))


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return LatentDenoiser(CausalVAE(TINY), gaussian(100, seed=9))


def test_of_noise_a_generator_leaves_as_much_as_the_filter(denoiser):
    noise = torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(0))
    fitted = WienerFilter.fit(noise[:400])
    losses = velocity_losses(denoiser.velocity, noise[400:].split(50), seed=0)
    linear = velocity_losses(fitted.velocity, noise[400:].split(50), seed=0)
    assert [a / b for a, b in zip(losses, linear, strict=True)] == pytest.approx([1] * 11, abs=0.02)


@pytest.mark.slow
def test_a_generator_of_gaussian_latents_reaches_the_filter(denoiser):
    model = denoiser.train()
    optimizer = torch.optim.AdamW(model.parameters(), 8e-3, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=60)
    for step in range(60):
        latent = gaussian(16, seed=100 + step)
        generator = torch.Generator().manual_seed(step)
        output = model(latent, generator=generator, posterior=DeterministicPosterior(latent))
        (
            output.weight.view(-1, 1, 1, 1, 1) * (output.video - output.target).square()
        ).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    best = WienerFilter(PATCH, torch.zeros(16), *torch.linalg.eigh(covariance()))
    unseen = gaussian(128, seed=3)
    losses = velocity_losses(model.velocity, unseen.split(64), seed=0)
    assert losses == pytest.approx(
        velocity_losses(best.velocity, unseen.split(64), seed=0), rel=0.07
    )


def test_of_other_channels_grey_samples_are_shown_beside_each_other(
    denoiser, monkeypatch, tmp_path
):
    """Of five channels: the denoiser of a model that decodes them."""
    monkeypatch.setattr(denoiser, "decode", lambda latent: torch.zeros(1, 5, 1, 32, 32))
    monkeypatch.setattr(
        denoiser, "encode", lambda video: DeterministicPosterior(video[:, :4, :, ::4, ::4])
    )
    clips = torch.rand(2, 1, 5, 1, 32, 32) * 2 - 1
    samples = tmp_path / "samples.mp4"
    linear = WienerFilter.fit(gaussian(40, seed=1))
    probe = measure_denoiser(denoiser.eval(), linear, lambda: iter(clips), samples, 0, None, 1.0)
    assert probe.frechet == {}
    assert probe.samples == f"{tmp_path.name}/samples.mp4"
    info = index_video(samples)
    assert (info.height, info.width) == (3 * 32, 2 * 5 * 32)


def test_the_distance_of_features_that_are_not_finite_is_nan(denoiser, monkeypatch, tmp_path):
    """The clips are shown, and the losses known."""
    monkeypatch.setattr(denoiser, "decode", lambda latent: torch.full((1, 3, 1, 32, 32), torch.nan))
    clips = torch.rand(5, 1, 3, 1, 32, 32) * 2 - 1
    samples = tmp_path / "samples.mp4"
    linear = WienerFilter.fit(gaussian(40, seed=1))
    network = lambda video: video.mean((2, 3, 4))  # noqa: E731
    probe = measure_denoiser(denoiser.eval(), linear, lambda: iter(clips), samples, 0, network, 1.0)
    assert all(map(math.isnan, probe.frechet.values()))
    assert len(probe.frechet) == 3
    assert all(map(math.isfinite, probe.losses))
