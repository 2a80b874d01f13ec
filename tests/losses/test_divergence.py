"""The divergence agrees with torch's own distributions and its gradient with finite differences."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from telecine.losses.divergence import kl_to_standard_normal


def moments(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=dtype), torch.randn(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 1, 1, 1), (2, 4, 3, 5, 2)])
def test_equals_torch_distributions(shape):
    mean, logvar = moments(shape)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean=mean, logvar=logvar), expected)


def test_gradcheck():
    mean, logvar = (tensor.requires_grad_() for tensor in moments((2, 3, 2)))
    assert torch.autograd.gradcheck(lambda m, v: kl_to_standard_normal(mean=m, logvar=v), (mean, logvar))


def test_is_zero_only_at_the_prior():
    zero = torch.zeros(2, 3)
    assert kl_to_standard_normal(mean=zero, logvar=zero) == 0
    assert kl_to_standard_normal(mean=zero + 1e-3, logvar=zero) > 0
    assert kl_to_standard_normal(mean=zero, logvar=zero - 1e-2) > 0


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    mean, logvar = moments((2, 4, 3), dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kl_to_standard_normal(mean=mean, logvar=logvar)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, kl_to_standard_normal(mean=mean.float(), logvar=logvar.float()), rtol=0, atol=0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"`logvar` must be of `mean`'s shape \(2, 3\)"):
        kl_to_standard_normal(mean=torch.zeros(2, 3), logvar=torch.zeros(2, 1))
