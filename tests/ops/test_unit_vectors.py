"""Unit vectors against autograd through their formulas."""

import pytest
import torch
from torch.nn import functional as F

from telecine.ops.unit_vectors import unit_vectors

EPS = 0.3


def plain(x, is_smooth):
    return (
        x / (x.square().sum(1, keepdim=True) + EPS**2).sqrt()
        if is_smooth
        else F.normalize(x, eps=EPS)
    )


def vectors(*shape):
    """Of norms below, about and above `EPS`, and zeros."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * torch.logspace(
        -3, 1, shape[-1], dtype=torch.float64
    )
    x[..., 0] = 0
    norms = x.norm(dim=1)
    assert (norms < EPS).any()
    assert (norms > EPS).any()
    return x.requires_grad_()


@pytest.mark.parametrize("is_smooth", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 1, 4, 6), (1, 5, 2, 3, 7)])
def test_values_gradients_and_second_derivatives(shape, is_smooth):
    x, results = vectors(*shape), []
    for y in (unit_vectors(x, EPS, is_smooth=is_smooth), plain(x, is_smooth)):
        weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y)
        (first,) = torch.autograd.grad((weights * y).sum(), x, create_graph=True)
        (plain_first,) = torch.autograd.grad(
            (weights * y).sum(), x, retain_graph=True
        )  # the closed form
        (second,) = torch.autograd.grad(first[..., 1:].square().sum(), x)
        results.append((y, first, plain_first, second[..., 1:]))  # PyTorch's is NaN at 0
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    assert results[0][3].abs().max() > 0


@pytest.mark.parametrize("is_smooth", [True, False])
def test_half_precision(is_smooth):
    x = vectors(2, 8, 6).detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = unit_vectors(x, EPS, is_smooth=is_smooth)
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
    wide = x.detach().double().requires_grad_()
    expected = plain(wide, is_smooth)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), wide)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=5e-2, atol=1e-2)


@pytest.mark.parametrize("is_smooth", [True, False])
def test_the_values_are_the_same_without_a_graph(is_smooth):
    x = vectors(2, 3, 6)
    assert torch.equal(
        unit_vectors(x.detach(), EPS, is_smooth=is_smooth),
        unit_vectors(x, EPS, is_smooth=is_smooth),
    )
    assert not unit_vectors(x.detach(), EPS, is_smooth=is_smooth).requires_grad
