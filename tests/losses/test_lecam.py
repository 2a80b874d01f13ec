"""LeCam regularisation against a loop over logits, and on which side it acts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine.losses import lecam

numbers = st.floats(-5, 5, width=32)
logits = st.lists(numbers, min_size=1, max_size=9).map(lambda values: torch.tensor(values, dtype=torch.float64))


def call(real, fake, real_average, fake_average, dtype=torch.float64):
    scalars = (torch.tensor(average, dtype=dtype) for average in (real_average, fake_average))
    return lecam(real=real, fake=fake, **dict(zip(("real_average", "fake_average"), scalars, strict=True)))


def naive(real, fake, real_average, fake_average):
    of_real = [max(0.0, logit - fake_average) ** 2 for logit in real.flatten().tolist()]
    of_fake = [max(0.0, real_average - logit) ** 2 for logit in fake.flatten().tolist()]
    return sum(of_real) / len(of_real) + sum(of_fake) / len(of_fake)


@settings(max_examples=25, deadline=None)
@given(real=logits, fake=logits, real_average=numbers, fake_average=numbers)
def test_equals_a_loop_over_logits_of_different_number(real, fake, real_average, fake_average):
    value = call(real, fake, real_average, fake_average)
    assert value.shape == ()
    assert value.item() == pytest.approx(naive(real, fake, real_average, fake_average), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("real", "fake", "real_average", "fake_average", "expected"),
    [
        (2.0, -1.0, 1.0, -0.5, 2.5**2 + 2.0**2),
        (0.0, 0.0, 0.0, 0.0, 0.0),
        (-1.0, 1.0, 0.0, 0.0, 0.0),  # the wrong way round: left alone
        (1.0, 1.0, 0.0, 0.0, 1.0),  # only the real one is too far
        (-1.0, -1.0, 0.0, 0.0, 1.0),  # only the fake one
    ],
)
def test_known_values(real, fake, real_average, fake_average, expected):
    assert call(torch.tensor([real]), torch.tensor([fake]), real_average, fake_average).item() == expected


def test_it_draws_logits_to_the_others_average():
    real, fake = torch.tensor([3.0, -3.0], requires_grad=True), torch.tensor([-3.0, 3.0], requires_grad=True)
    call(real, fake, 1.0, -1.0).backward()
    assert real.grad.tolist() == [4.0, 0.0]  # descends; the second is below the fakes' average already
    assert fake.grad.tolist() == [-4.0, 0.0]


def test_a_map_of_logits_counts_each():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    assert call(real, fake, 0.3, -0.3).item() == pytest.approx(naive(real, fake, 0.3, -0.3), rel=1e-12)


def test_no_gradient_reaches_the_averages():
    averages = [torch.tensor(0.5, requires_grad=True), torch.tensor(-0.5, requires_grad=True)]
    real = torch.ones(2, requires_grad=True)
    lecam(real=real, fake=-real, real_average=averages[0], fake_average=averages[1]).backward()
    assert [average.grad for average in averages] == [None, None]
    assert real.grad.ne(0).all()


@pytest.mark.parametrize("level", [-5.0, 0.0, 5.0])
def test_gradients_of_constant_logits_are_finite(level):
    real, fake = (torch.full((3,), level, requires_grad=True) for _ in range(2))
    call(real, fake, level, level).backward()
    assert real.grad.isfinite().all()
    assert fake.grad.isfinite().all()


def test_gradcheck():
    torch.manual_seed(0)
    real, fake = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda r, f: call(r, f, 0.1, -0.2), (real, fake))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_also_under_autocast(dtype):
    real, fake = torch.full((5,), 300.0, dtype=dtype), torch.full((5,), -300.0, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = call(real, fake, 1.0, -1.0, dtype)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.item() == pytest.approx(2 * 301.0**2, rel=1e-6)  # out of float16's range


def test_nothing_waits_for_the_device():
    logits, average = torch.empty(2, 3, device="meta", requires_grad=True), torch.empty((), device="meta")
    value = lecam(real=logits, fake=logits, real_average=average, fake_average=average)
    value.backward()
    assert value.shape == ()
