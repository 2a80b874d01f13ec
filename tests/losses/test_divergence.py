"""The divergence agrees with torch's own distributions and its gradient with finite differences."""

import inspect

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from telecine.losses import kl_to_standard_normal, posterior_kl

REDUCTIONS = ("mean", "sum")


def moments(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=dtype), torch.randn(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 1, 1, 1), (2, 4, 3, 5, 2)])
def test_equals_torch_distributions(shape):
    mean, logvar = moments(shape)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean=mean, logvar=logvar), expected)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 1, 1, 1), (3, 4, 3, 5, 2)])
def test_the_sum_is_over_the_latent_and_the_mean_over_the_batch(shape):
    mean, logvar = moments(shape)
    per_clip = [
        kl_divergence(Normal(m, (0.5 * v).exp()), Normal(0.0, 1.0)).sum() for m, v in zip(mean, logvar, strict=True)
    ]
    value = kl_to_standard_normal(mean=mean, logvar=logvar, reduction="sum")
    assert value.shape == ()
    torch.testing.assert_close(value, torch.stack(per_clip).mean())


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 2.25 / 2), ("sum", 3 * 2.25 / 2)])
def test_by_hand(reduction, expected):
    mean = torch.full((2, 3), 1.5)
    value = kl_to_standard_normal(mean=mean, logvar=torch.zeros(2, 3), reduction=reduction)
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction):
    mean, logvar = (tensor.requires_grad_() for tensor in moments((2, 3, 2)))
    assert torch.autograd.gradcheck(
        lambda m, v: kl_to_standard_normal(mean=m, logvar=v, reduction=reduction), (mean, logvar)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_is_zero_only_at_the_prior(reduction):
    zero = torch.zeros(2, 3)
    assert kl_to_standard_normal(mean=zero, logvar=zero, reduction=reduction) == 0
    assert kl_to_standard_normal(mean=zero + 1e-3, logvar=zero, reduction=reduction) > 0
    assert kl_to_standard_normal(mean=zero, logvar=zero - 1e-2, reduction=reduction) > 0


def test_the_mean_does_not_grow_with_the_resolution():
    mean, logvar = moments((2, 4, 3, 5, 2))
    larger = [tensor.repeat(1, 1, 2, 3, 2) for tensor in (mean, logvar)]
    torch.testing.assert_close(
        kl_to_standard_normal(mean=larger[0], logvar=larger[1]), kl_to_standard_normal(mean=mean, logvar=logvar)
    )


def test_times_elements_per_clip_is_the_sum_over_the_latent_divided_by_the_batch():
    mean, logvar = moments((2, 4, 3, 5, 2))
    summed = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / len(mean)
    torch.testing.assert_close(kl_to_standard_normal(mean=mean, logvar=logvar) * mean[0].numel(), summed)
    torch.testing.assert_close(kl_to_standard_normal(mean=mean, logvar=logvar, reduction="sum"), summed)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_also_under_autocast(dtype, reduction):
    mean, logvar = moments((2, 4, 3), dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kl_to_standard_normal(mean=mean, logvar=logvar, reduction=reduction)
    wide = torch.promote_types(dtype, torch.float32)
    assert value.dtype == wide
    expected = kl_to_standard_normal(mean=mean.to(wide), logvar=logvar.to(wide), reduction=reduction)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"`logvar` must be of `mean`'s shape \(2, 3\)"):
        kl_to_standard_normal(mean=torch.zeros(2, 3), logvar=torch.zeros(2, 1))


def test_the_reduction_must_be_known():
    unchecked = inspect.unwrap(kl_to_standard_normal)  # the types, which are checked in tests only, would speak first
    assert unchecked is not kl_to_standard_normal
    with pytest.raises(ValueError, match='`reduction` must be "mean" or "sum", but got \'none\''):
        unchecked(mean=torch.zeros(2, 3), logvar=torch.zeros(2, 3), reduction="none")


class Posterior:
    """The attributes of diffusers' `DiagonalGaussianDistribution` that count here."""

    def __init__(self, shape):
        self.mean, self.logvar = moments(shape)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 4, 3, 5, 6)])
def test_a_posterior_is_its_moments(shape, reduction):
    posterior = Posterior(shape)
    expected = kl_to_standard_normal(mean=posterior.mean, logvar=posterior.logvar, reduction=reduction)
    assert posterior_kl(posterior, reduction=reduction) == expected
    assert posterior_kl(posterior=posterior) == kl_to_standard_normal(mean=posterior.mean, logvar=posterior.logvar)


def test_a_posterior_of_video_is_summed_over_every_axis():
    posterior = Posterior((2, 4, 3, 5, 6))
    elements = kl_divergence(Normal(posterior.mean, (0.5 * posterior.logvar).exp()), Normal(0.0, 1.0))
    per_clip = elements.sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(posterior_kl(posterior, reduction="sum"), per_clip.mean())
    assert elements.sum(dim=(1, 2, 3)).shape == (2, 6)  # what summing over three axes leaves of a video


class Identity:
    def sample(self):
        return torch.zeros(1)


@pytest.mark.parametrize(
    ("posterior", "missing"),
    [
        (Identity(), "Identity without `mean` and `logvar`"),
        (Normal(torch.zeros(2), torch.ones(2)), "Normal without `logvar`"),
        (torch.zeros(2), "Tensor without `mean` and `logvar`"),
        (None, "NoneType without `mean` and `logvar`"),
    ],
)
def test_a_posterior_without_moments_has_no_divergence(posterior, missing):
    with pytest.raises(ValueError, match=rf"but got {missing}. .*has no divergence; pass `aux_losses=None`"):
        posterior_kl(posterior)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_waits_for_the_device(reduction):
    mean, logvar = (torch.empty(2, 3, 4, device="meta", requires_grad=True) for _ in range(2))
    value = kl_to_standard_normal(mean=mean, logvar=logvar, reduction=reduction)
    value.backward()
    assert value.shape == ()
