"""The pixel losses against loops, finite differences, and known values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.distributions import Laplace, Normal
from torch.nn import functional as F

from telecine.losses import RECONSTRUCTION_LOSSES, charbonnier, gaussian_nll, l1, mse

EPSILON = 1e-3
ERRORS = {
    "mse": lambda d: d * d,
    "l1": abs,
    "charbonnier": lambda d: math.sqrt(d * d + EPSILON * EPSILON),
}
losses = pytest.mark.parametrize("name", sorted(RECONSTRUCTION_LOSSES))


def pair(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1 for _ in range(2)]


def naive(name, x, y, weight=None):
    weight = [1.0] * len(x) if weight is None else weight.tolist()
    samples = []
    for a, b, w in zip(x, y, weight, strict=True):
        errors = [ERRORS[name](p - q) for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
        samples.append(w * sum(errors) / len(errors))
    return sum(samples) / len(samples)


def test_every_loss_is_tested():
    assert sorted(RECONSTRUCTION_LOSSES) == sorted(ERRORS) == ["charbonnier", "l1", "mse"]
    assert (RECONSTRUCTION_LOSSES["mse"], RECONSTRUCTION_LOSSES["l1"]) == (mse, l1)
    assert RECONSTRUCTION_LOSSES["charbonnier"] is charbonnier


@losses
@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 99), weighted=st.booleans())
def test_equals_a_loop(name, shape, seed, weighted):
    x, y = pair(shape, seed)
    weight = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)) if weighted else None
    value = RECONSTRUCTION_LOSSES[name](reconstruction=x, target=y, weight=weight)
    assert value.shape == ()
    assert value.item() == pytest.approx(naive(name, x, y, weight), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_mse_without_weights_is_pytorchs_to_the_bit(dtype):
    x, y = pair((2, 3, 4, 7, 5), dtype=dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = mse(reconstruction=ours, target=y)
    expected = F.mse_loss(
        theirs.float() if dtype == torch.float16 else theirs, y.float() if dtype == torch.float16 else y
    )
    value.backward()
    expected.backward()
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(("name", "expected"), [("mse", 4.0), ("l1", 2.0), ("charbonnier", 2.0000002499999843)])
def test_the_largest_error_of_a_video(name, expected):
    x = torch.ones(1, 3, 2, 4, 4, dtype=torch.float64)
    assert RECONSTRUCTION_LOSSES[name](reconstruction=x, target=-x).item() == pytest.approx(expected, rel=1e-14)


@losses
@pytest.mark.parametrize("fill", [-1.0, 0.0, 1.0, "noise"])
def test_identical_videos_lose_the_least_with_a_gradient_of_zero(name, fill):
    x = pair((2, 3, 2, 4, 4))[0] if fill == "noise" else torch.full((2, 3, 2, 4, 4), fill, dtype=torch.float64)
    reconstruction = x.clone().requires_grad_()
    value = RECONSTRUCTION_LOSSES[name](reconstruction=reconstruction, target=x)
    value.backward()
    assert value.item() == pytest.approx(EPSILON if name == "charbonnier" else 0.0, rel=1e-12, abs=0)
    assert torch.equal(reconstruction.grad, torch.zeros_like(x))


@losses
def test_symmetry_and_order(name):
    x, y = pair((2, 3, 2, 4, 4))
    loss = RECONSTRUCTION_LOSSES[name]
    assert loss(reconstruction=x, target=y) == loss(reconstruction=y, target=x)
    worse = [loss(reconstruction=x + scale * (y - x), target=x).item() for scale in (0, 0.01, 0.1, 1)]
    assert worse == sorted(worse)
    assert worse[0] < worse[1]


def test_charbonnier_lies_between_l1_and_l1_plus_epsilon_and_has_the_slope_of_mse_at_zero():
    x, y = pair((4, 5))
    below = l1(reconstruction=x, target=y)
    assert below < charbonnier(reconstruction=x, target=y, epsilon=0.1) < below + 0.1
    small = torch.tensor([1e-6], dtype=torch.float64, requires_grad=True)
    charbonnier(reconstruction=small, target=torch.zeros(1, dtype=torch.float64)).backward()
    assert small.grad.item() == pytest.approx(1e-6 / EPSILON, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, -1e-3, float("nan")])
def test_epsilon_must_be_above_0(epsilon):
    with pytest.raises(ValueError, match="`epsilon` must be above 0"):
        charbonnier(reconstruction=torch.zeros(1), target=torch.zeros(1), epsilon=epsilon)


@losses
def test_weights_multiply_and_are_not_divided_by_their_sum(name):
    x, y = pair((3, 2, 4))
    loss = RECONSTRUCTION_LOSSES[name]
    full = loss(reconstruction=x, target=y)
    half = loss(reconstruction=x, target=y, weight=torch.full((3,), 0.5))
    assert half.item() == pytest.approx(full.item() / 2, rel=1e-12)
    alone = loss(reconstruction=x, target=y, weight=torch.tensor([0.0, 3.0, 0.0]))
    assert alone.item() == pytest.approx(loss(reconstruction=x[1:2], target=y[1:2]).item(), rel=1e-12)
    assert loss(reconstruction=x, target=y, weight=torch.ones(3)).item() == pytest.approx(full.item(), rel=1e-12)


@losses
def test_a_sample_of_weight_0_gets_no_gradient(name):
    x, y = pair((3, 2, 4))
    x.requires_grad_()
    RECONSTRUCTION_LOSSES[name](reconstruction=x, target=y, weight=torch.tensor([1.0, 0.0, 1.0])).backward()
    assert x.grad.flatten(1).abs().sum(1).gt(0).tolist() == [True, False, True]


@losses
def test_wrong_shapes(name):
    x, y = pair((3, 2, 4))
    loss = RECONSTRUCTION_LOSSES[name]
    with pytest.raises(ValueError, match=r"`reconstruction` must be of `target`'s shape \(3, 2, 4\)"):
        loss(reconstruction=x[:1], target=y)
    for weight in (torch.ones(2), torch.ones(3, 1), torch.ones(())):
        with pytest.raises(ValueError, match=r"`weight` must be of shape \(3,\)"):
            loss(reconstruction=x, target=y, weight=weight)
    with pytest.raises(TypeError):
        loss(x, y)


@losses
def test_gradcheck(name):
    x, y = (tensor.requires_grad_() for tensor in pair((2, 2, 3)))
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    loss = RECONSTRUCTION_LOSSES[name]
    assert torch.autograd.gradcheck(lambda a, b: loss(reconstruction=a, target=b), (x, y))
    assert torch.autograd.gradcheck(lambda a, b, w: loss(reconstruction=a, target=b, weight=w), (x, y, weight))


@losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_at_least_float32_also_under_autocast(name, dtype, weighted):
    x, y = pair((2, 3, 2, 3, 4), dtype=dtype)
    weight = torch.tensor([0.25, 2.0], dtype=dtype) if weighted else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = RECONSTRUCTION_LOSSES[name](reconstruction=x, target=y, weight=weight)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.item() == pytest.approx(naive(name, x, y, weight), rel=1e-5)


@losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(name, dtype):
    x = torch.full((4, 100), 200.0, dtype=dtype)  # the square, 160000, is out of float16's range
    for weight in (None, torch.ones(4, dtype=dtype)):
        value = RECONSTRUCTION_LOSSES[name](reconstruction=x, target=-x, weight=weight)
        assert value.item() == pytest.approx(160_000 if name == "mse" else 400, rel=1e-6)


def test_the_wider_of_two_types_counts_and_a_weights_type_does_not():
    x, y = torch.rand(3), torch.rand(3, dtype=torch.float64)
    assert mse(reconstruction=x, target=y).dtype == torch.float64
    assert mse(reconstruction=x.bfloat16(), target=x).dtype == torch.float32
    assert mse(reconstruction=x, target=x, weight=y).dtype == torch.float32
    chosen = torch.tensor([True, False, True])
    assert l1(reconstruction=x, target=x + 1, weight=chosen).item() == pytest.approx(2 / 3)


@losses
def test_nothing_waits_for_the_device(name):
    x, y = (torch.empty(2, 3, 4, device="meta", requires_grad=True) for _ in range(2))
    for weight in (None, torch.empty(2, device="meta")):
        value = RECONSTRUCTION_LOSSES[name](reconstruction=x, target=y, weight=weight)
        value.backward()
        assert (value.shape, value.device.type) == ((), "meta")


def test_nll_by_hand():
    value = gaussian_nll(distance=torch.tensor(2.0), logvar=torch.tensor(math.log(4.0)))
    assert value.item() == pytest.approx(0.5 + math.log(4.0))
    assert gaussian_nll(distance=torch.tensor(0.3), logvar=torch.tensor(0.0)).item() == pytest.approx(0.3)


def test_nll_of_l1_is_that_of_a_laplace_distribution():
    x, y = pair((2, 3, 4))
    logvar = torch.tensor(-0.7, dtype=torch.float64)
    expected = -Laplace(x, logvar.exp()).log_prob(y).mean() - math.log(2)
    torch.testing.assert_close(gaussian_nll(distance=l1(reconstruction=x, target=y), logvar=logvar), expected)


def test_nll_of_mse_is_twice_that_of_a_gaussian():
    x, y = pair((2, 3, 4))
    logvar = torch.tensor(-0.7, dtype=torch.float64)
    expected = -2 * Normal(x, (0.5 * logvar).exp()).log_prob(y).mean() - math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_nll(distance=mse(reconstruction=x, target=y), logvar=logvar), expected)


def test_nll_is_least_where_logvar_is_the_log_of_the_distance():
    distance = torch.tensor(0.05, dtype=torch.float64)
    logvar = distance.log().requires_grad_()
    value = gaussian_nll(distance=distance, logvar=logvar)
    value.backward()
    assert value.item() == pytest.approx(1 + math.log(0.05))
    assert logvar.grad.item() == pytest.approx(0, abs=1e-12)
    for step in (-0.1, 0.1):
        assert gaussian_nll(distance=distance, logvar=logvar + step) > value


def test_nll_gradcheck_dtypes_and_meta():
    numbers = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (0.3, -0.4)]
    assert torch.autograd.gradcheck(lambda d, v: gaussian_nll(distance=d, logvar=v), numbers)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        distance, logvar = torch.tensor(0.5, dtype=dtype), torch.tensor(-12.0, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = gaussian_nll(distance=distance, logvar=logvar)  # 0.5 * exp(12) is out of float16's range
        assert value.dtype == torch.promote_types(dtype, torch.float32)
        assert value.item() == pytest.approx(0.5 * math.exp(12) - 12, rel=1e-6)
    meta = torch.empty((), device="meta")
    assert gaussian_nll(distance=meta, logvar=meta).shape == ()


def test_shape_types_are_checked_in_tests():
    with pytest.raises(TypeCheckError):
        gaussian_nll(distance=torch.zeros(2), logvar=torch.tensor(0.0))
