"""The Frechet distance against scipy's matrix root and against known Gaussians."""

import numpy as np
import pytest
import scipy.linalg
import torch

from telecine.evaluation.frechet import frechet_distance, samples_needed


def samples(num=200, dim=8, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(num, dim, generator=generator) @ mixing + offset


def scipy_distance(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    s, r = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + r - 2 * scipy.linalg.sqrtm(s @ r).real)


def exactly(covariance_root, mean, num=64):
    """Return samples whose mean and covariance (over N - 1) are exactly those."""
    raw = torch.randn(num, len(mean), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    raw = raw - raw.mean(0)
    whitened = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T.cov()).T)
    return whitened @ covariance_root + mean


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_equals_scipy(offset):
    x, y = samples(seed=0), samples(seed=1, num=150, offset=offset)
    assert frechet_distance(features=x, reference=y) == pytest.approx(scipy_distance(x, y), rel=1e-7)


def test_the_closed_form_of_gaussians_with_independent_features():
    a, b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 0.5]).double()
    x = exactly(a.diag(), torch.tensor([0.0, 1.0, -1.0]).double())
    y = exactly(b.diag(), torch.tensor([1.0, 1.0, 1.0]).double(), num=80)
    # |m - n|^2 + sum (s - r)^2
    assert frechet_distance(features=x, reference=y) == pytest.approx(1 + 4 + 1 + 0 + 6.25, rel=1e-9)


def test_is_0_for_equal_sets_and_symmetric():
    x, y = samples(seed=0), samples(seed=1)
    assert frechet_distance(features=x, reference=x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features=x, reference=y) == pytest.approx(frechet_distance(features=y, reference=x))


def test_survives_features_that_never_vary():
    x, y = samples(), samples(seed=1)
    x[:, 0], y[:, 0] = 0.0, 1.0
    rest = frechet_distance(features=x[:, 1:], reference=y[:, 1:])
    assert frechet_distance(features=x, reference=y) == pytest.approx(rest + 1, rel=1e-6)


def test_too_few_samples_are_refused():
    assert samples_needed(8) == 9
    frechet_distance(features=samples(num=9), reference=samples(num=9, seed=1))
    with pytest.raises(ValueError, match="`reference` must be at least 9 rows for 8 columns"):
        frechet_distance(features=samples(num=9), reference=samples(num=8))


@pytest.mark.parametrize(
    ("features", "message"),
    [(torch.zeros(3), "`features` must be floating point"), (samples(dim=7), "`features` must be of 8 columns")],
)
def test_refusals(features, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(features=features, reference=samples())
