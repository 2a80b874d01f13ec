"""Posteriors sample with the given moments and stay finite for any encoder output."""

import math

import pytest
import torch

from telecine.losses import posterior_kl
from telecine.models import DeterministicPosterior, DiagonalGaussian


def gaussian(mean=0.5, logvar=-1.0, shape=(1, 4, 3, 40, 40)):
    return DiagonalGaussian(mean=torch.full(shape, mean), logvar=torch.full(shape, logvar))


def test_samples_have_the_mean_and_variance():
    posterior = gaussian()
    sample = posterior.sample(torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(0.5, abs=0.02)
    assert sample.var().item() == pytest.approx(math.exp(-1), abs=0.02)
    assert torch.equal(posterior.mode(), posterior.mean)


def test_samples_are_differentiable_in_mean_and_logvar():
    def sample(mean, logvar):
        return DiagonalGaussian(mean=mean, logvar=logvar).sample(torch.Generator().manual_seed(0))

    inputs = torch.zeros(2, 2, 3, dtype=torch.float64, requires_grad=True).unbind()
    assert torch.autograd.gradcheck(sample, inputs)


@pytest.mark.parametrize("logvar", [-1e4, 1e4])
def test_extreme_logvar_stays_finite(logvar):
    posterior = gaussian(logvar=logvar)
    assert posterior_kl(posterior).isfinite()
    assert posterior.sample().isfinite().all()


def test_half_precision_becomes_float32():
    posterior = DiagonalGaussian(mean=torch.zeros(2).bfloat16(), logvar=torch.zeros(2).bfloat16())
    assert posterior.sample().dtype == posterior_kl(posterior).dtype == torch.float32
    assert DeterministicPosterior(torch.zeros(2).bfloat16()).sample().dtype == torch.float32


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="two equal halves"):
        DiagonalGaussian(mean=torch.zeros(2, 3), logvar=torch.zeros(2, 2))


def test_a_deterministic_posterior_has_no_noise_and_only_a_quantizers_losses():
    latent = torch.rand(2, 3)
    losses = {"quantizer_loss": torch.ones(())}
    posterior = DeterministicPosterior(latent, losses)
    assert torch.equal(posterior.sample(), latent)
    assert torch.equal(posterior.mode(), latent)
    assert posterior.aux() == losses
    assert DeterministicPosterior(latent).aux() == {}
