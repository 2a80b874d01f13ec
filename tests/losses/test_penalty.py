"""The gradient penalty against a loop over samples, known values, and finite differences of its own gradient."""

import pytest
import torch
from torch import nn

from telecine.losses import gradient_penalty
from telecine.losses.penalty import sample_norms


class Quadratic(nn.Module):
    """Logits `sum(weight * x^2)`, whose gradient is `2 weight x`."""

    def __init__(self, shape):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))

    def forward(self, x):
        return (self.weight * x**2).flatten(1).sum(1)


def video(shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("shape", [(1, 5), (3, 2, 4, 4), (2, 3, 2, 4, 5)])
@pytest.mark.parametrize("center", [1.0, 0.0, 2.5])
def test_equals_a_loop_over_samples(shape, center):
    module = Quadratic(shape[1:])
    x = video(shape)
    expected = 0.0
    for sample in x.detach():
        squares = ((2 * module.weight * sample) ** 2).flatten().tolist()
        expected += (sum(squares) ** 0.5 - center) ** 2 / shape[0]
    penalty = gradient_penalty(real=x, logits=module(x), center=center)
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(expected, rel=1e-12)


def test_the_centre_is_one():
    x = video((2, 4))
    assert gradient_penalty(real=x, logits=x[:, 0]) == 0
    assert gradient_penalty(real=x, logits=3 * x[:, 0]) == 4


def test_the_norm_is_per_sample_not_per_batch():
    x = video((4, 3))
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert gradient_penalty(real=x, logits=scale * x[:, 1]).item() == (0 + 1 + 4 + 9) / 4


def test_its_gradient_reaches_the_parameters():
    module, x = Quadratic((3,)), video((2, 3))

    def penalty(weight):
        return gradient_penalty(real=x, logits=torch.func.functional_call(module, {"weight": weight}, (x,)))

    assert torch.autograd.gradcheck(penalty, (module.weight,))


def test_a_sample_that_is_ignored_has_a_finite_gradient():
    x = video((2, 3))
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(real=x, logits=(x**2) @ weight)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert penalty == 1
    assert gradient.isfinite().all()


def test_a_map_of_logits_is_summed():
    x = video((2, 3))
    assert gradient_penalty(real=x, logits=torch.stack([x, 2 * x], 1)).item() == pytest.approx((27**0.5 - 1) ** 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_norms_are_float32(dtype):
    norms = sample_norms(torch.full((2, 100), 300.0, dtype=dtype))
    assert norms.dtype == torch.float32
    assert norms.tolist() == [3000.0, 3000.0]
    x = torch.randn(2, 3).to(dtype).requires_grad_()
    assert gradient_penalty(real=x, logits=x.sum(1)).dtype == torch.float32


def test_norms_check():
    assert torch.autograd.gradcheck(sample_norms, (video((2, 3, 2)),))
