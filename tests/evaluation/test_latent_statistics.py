"""Measures of latents: known values of latents whose properties are known."""

import math

import pytest
import torch

from telecine.evaluation.latent_statistics import (
    autocorrelation,
    code_usage,
    covariance_eigenvalues,
    dead_channels,
    effective_rank,
    high_frequency_share,
    kurtosis,
    latent_summary,
    radial_spectrum,
)
from telecine.models.bottleneck import build_bottleneck
from telecine.settings import CausalVAEConfig

from .devices import WithoutFloat64


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(frequency, size=16):
    """A latent of one channel whose rows are a cosine of so many cycles per position."""
    return torch.cos(2 * math.pi * frequency * torch.arange(size)).expand(1, 1, 1, size, size)


def test_kurtosis_of_a_normal_a_uniform_and_a_constant_channel():
    latents = torch.cat(
        [noise(4, 1, 2, 32, 32), torch.rand(4, 1, 2, 32, 32) * 5 + 1, torch.ones(4, 1, 2, 32, 32)],
        1,
    )
    assert kurtosis(latents) == pytest.approx([3.0, 1.8, 0.0], abs=0.15)
    assert dead_channels([1.0, 0.005, 0.02, 0.0]) == [1, 3]


def test_eigenvalues_and_effective_rank():
    z = noise(2, 2, 3, 32, 32)
    three = torch.cat(
        [2 * z[:, :1], z[:, 1:], 2 * z[:, :1]], 1
    )  # the third channel repeats the first
    first, second, third = covariance_eigenvalues(three)
    assert (first, second, third) == pytest.approx((8, 1, 0), abs=0.4)
    assert effective_rank([1.0, 1.0, 1.0, 0.0]) == pytest.approx(3)
    assert effective_rank([5.0, 0.0]) == pytest.approx(1)
    p = (0.8, 0.2)
    assert effective_rank([8.0, 2.0]) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))


@pytest.mark.parametrize("frequency", [1 / 16, 3 / 16, 6 / 16])
def test_the_spectrum_of_a_wave_is_one_line(frequency):
    frequencies, shares = radial_spectrum(wave(frequency))
    assert frequencies[:3] == [1 / 16, 2 / 16, 3 / 16]
    assert sum(shares) == pytest.approx(1)
    assert shares[frequencies.index(frequency)] == pytest.approx(1)
    assert high_frequency_share(wave(frequency)) == pytest.approx(float(frequency > 0.25), abs=1e-9)


def test_white_noise_has_the_share_of_high_frequencies_of_the_area():
    # All frequencies but those in a circle of radius 1/4.
    assert high_frequency_share(noise(8, 2, 2, 32, 32)) == pytest.approx(1 - math.pi / 16, abs=0.03)
    assert high_frequency_share(torch.ones(1, 2, 1, 4, 4)) == 0


def test_autocorrelation():
    z = noise(2, 2, 3, 32, 32)
    assert autocorrelation(z, (3, 4), 3) == pytest.approx([0, 0, 0], abs=0.03)
    still = noise(2, 1, 1, 32, 32).expand(-1, -1, 4, -1, -1)
    assert autocorrelation(still, (2,), 8) == pytest.approx([1, 1, 1])
    # Of a wave along the width, constant along the height: the mean of both directions.
    assert autocorrelation(wave(0.25), (3, 4), 2) == pytest.approx(
        [0.5 * (1 + 0), 0.5 * (1 - 1)], abs=0.1
    )
    assert autocorrelation(z[:, :, :1], (2,), 8) == []


def test_the_summary():
    figures = latent_summary(
        torch.cat([2 * noise(4, 1, 2, 16, 16), torch.zeros(4, 1, 2, 16, 16)], 1)
    )
    assert figures["std"] == pytest.approx(1, rel=0.05)
    assert figures["dead_channels"] == 1
    assert figures["effective_rank"] == pytest.approx(1)
    assert 0.7 < figures["high_frequencies"] < 0.9


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_makes_the_numbers_nan(value):
    latents = noise(2, 3, 1, 8, 8)
    latents[1, 2, 0, 0, 0] = value
    expected = latent_summary(noise(2, 3, 1, 8, 8))
    figures = latent_summary(latents)
    assert list(figures) == list(expected)
    assert all(math.isnan(number) for number in figures.values())
    assert all(math.isnan(number) for number in covariance_eigenvalues(latents))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bottleneck", ["fsq", "lfq"])
def test_codes_of_a_value_that_is_not_finite_make_the_usage_nan(value, bottleneck):
    codebook = build_bottleneck(
        CausalVAEConfig(latent_channels=4, bottleneck=bottleneck, lfq_bits=4)
    )
    latents = codebook.quantize(noise(1, 4, 1, 8, 8))
    expected = code_usage(codebook, latents)
    latents[0, 0, 0, 0, 0] = value
    figures = code_usage(codebook, latents)
    assert list(figures) == list(expected)
    assert all(math.isnan(number) for number in figures.values())


def test_code_usage():
    """Of the first code of each position half of the codebook, evenly; of the second, one value."""

    class Codebook:
        codebook_size = 8

        def indices(self, latents):
            return latents.long()

    latents = torch.stack([torch.arange(64) % 4, torch.full((64,), 7)]).view(1, 2, 1, 8, 8).double()
    assert code_usage(None, latents) == {}
    figures = code_usage(Codebook(), latents)
    assert figures == pytest.approx(
        {"codes_used": 5 / 16, "code_entropy": 1.0, "code_perplexity": 2.5}
    )
    assert code_usage(Codebook(), latents.float().as_subclass(WithoutFloat64)) == figures
