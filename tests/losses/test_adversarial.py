"""The hinge losses against loops over single logits, finite differences, and known values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from telecine.losses import adversarial, hinge_discriminator, hinge_generator

logits = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=9).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def naive_hinge(real, fake):
    real_loss = sum(max(0.0, 1 - logit) for logit in real.flatten().tolist()) / real.numel()
    fake_loss = sum(max(0.0, 1 + logit) for logit in fake.flatten().tolist()) / fake.numel()
    return real_loss + fake_loss


@settings(max_examples=25, deadline=None)
@given(real=logits, fake=logits)
def test_equal_loops_over_logits_of_different_number(real, fake):
    assert hinge_discriminator(real=real, fake=fake).item() == pytest.approx(naive_hinge(real, fake), abs=1e-12)
    assert hinge_generator(fake=fake).item() == pytest.approx(-sum(fake.tolist()) / len(fake), abs=1e-12)


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [(0.0, 0.0, 2.0), (1.0, -1.0, 0.0), (3.0, -3.0, 0.0), (-1.0, 1.0, 4.0), (0.5, -0.25, 1.25)],
)
def test_known_values(real, fake, expected):
    assert hinge_discriminator(real=torch.tensor([real]), fake=torch.tensor([fake])).item() == expected


def test_the_generator_lowers_its_loss_by_raising_logits():
    fake = torch.zeros(4, requires_grad=True)
    hinge_generator(fake=fake).backward()
    assert fake.grad.tolist() == [-0.25] * 4


def test_maps_of_logits_count_each_logit():
    real, fake = torch.randn(2, 1, 3, 4), torch.randn(5, 1, 2)
    assert hinge_discriminator(real=real, fake=fake).item() == pytest.approx(naive_hinge(real, fake), rel=1e-6)


def test_gradcheck():
    torch.manual_seed(0)
    real, fake = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda r, f: hinge_discriminator(real=r, fake=f), (real, fake))
    assert torch.autograd.gradcheck(lambda f: hinge_generator(fake=f), (fake,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_also_under_autocast(dtype):
    # 1 + 1/512 is no bfloat16, and the mean of these is none either.
    logits = torch.tensor([1.0, 1 / 128, -1 / 64], dtype=dtype)
    expected = torch.promote_types(dtype, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = hinge_discriminator(real=logits, fake=logits), hinge_generator(fake=logits)
    assert [loss.dtype for loss in losses] == [expected, expected]
    assert losses[0].item() == pytest.approx(naive_hinge(logits, logits), rel=1e-6)
    assert losses[1].item() == pytest.approx(-(1 + 1 / 128 - 1 / 64) / 3, rel=1e-6)


def test_half_precision_does_not_overflow():
    loss = hinge_generator(fake=torch.full((100,), 6e4, dtype=torch.float16))
    assert loss.item() == pytest.approx(-6e4, rel=1e-3)


def test_pairs_are_named_so_that_they_cannot_be_swapped():
    with pytest.raises(TypeError):
        hinge_discriminator(torch.zeros(1), torch.zeros(1))
    with pytest.raises(TypeError):
        hinge_generator(torch.zeros(1))


def test_shape_types_are_checked_in_tests(monkeypatch):
    monkeypatch.setattr(adversarial, "at_least_float32", lambda tensor: torch.zeros(2, 1, 1))
    monkeypatch.setattr(torch.Tensor, "mean", lambda tensor: tensor)
    with pytest.raises(TypeCheckError):
        hinge_generator(fake=torch.zeros(2))
