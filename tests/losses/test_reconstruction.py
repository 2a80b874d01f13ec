"""The reconstruction error against loops, finite differences, and known values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.losses import mse


@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_equals_a_loop(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))
    squares = [(a - b) ** 2 for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)]
    assert mse(reconstruction=x, target=y).item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)


def test_bounds_identity_symmetry():
    x = torch.ones(1, 3, 2, 4, 4)
    y = torch.rand(1, 3, 2, 4, 4)
    assert mse(reconstruction=x, target=x) == 0
    assert mse(reconstruction=x, target=-x) == 4
    assert mse(reconstruction=x, target=y) == mse(reconstruction=y, target=x)


def test_gradcheck():
    torch.manual_seed(0)
    x, y = (torch.randn(1, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: mse(reconstruction=a, target=b), (x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(dtype):
    x = torch.full((4, 100), 200.0, dtype=dtype)  # the square, 160000, is out of float16's range
    value = mse(reconstruction=x, target=-x)
    assert value.dtype == torch.float32
    assert value.item() == 160_000


def test_the_wider_of_two_types_counts():
    x, y = torch.rand(3), torch.rand(3, dtype=torch.float64)
    assert mse(reconstruction=x, target=y).dtype == torch.float64
    assert mse(reconstruction=x.bfloat16(), target=x).dtype == torch.float32
