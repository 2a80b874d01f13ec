"""Running means: unbiased from the first value on, deaf to what is not finite, saved."""

import pytest
import torch

from telecine.objective.averages import RunningMean


def after(decay, *values):
    mean = RunningMean(decay)
    for value in values:
        mean.update(torch.tensor(value))
    return mean


def test_the_first_values_are_averaged_evenly():
    assert after(0.99)().item() == 0
    assert after(0.99, 3.0)().item() == 3
    assert after(0.99, 3.0, 5.0)().item() == 4
    assert after(0.99, 3.0, 5.0, 10.0)().item() == 6


def test_then_the_decay_takes_over():
    expected, mean = 4.0, after(0.5, 3.0, 5.0)
    for value in (7.0, -2.0, 11.0):
        mean.update(torch.tensor(value))
        expected = 0.5 * expected + 0.5 * value
        assert mean().item() == pytest.approx(expected)


def test_no_decay_keeps_the_newest_value():
    assert after(0.0, 3.0, 5.0)().item() == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_passed_over(bad):
    assert after(0.9, bad)().item() == 0
    assert after(0.9, 2.0, bad, 4.0)().item() == 3


def test_the_value_is_detached_and_not_a_view():
    mean = RunningMean(0.9)
    mean.update(torch.tensor(2.0, requires_grad=True))
    before = mean()
    assert not before.requires_grad
    mean.update(torch.tensor(4.0))
    assert before.item() == 2


def test_saved_and_loaded():
    restored = RunningMean(0.9)
    restored.load_state_dict(after(0.9, 1.0, 2.0).state_dict())
    restored.update(torch.tensor(6.0))
    assert restored().item() == after(0.9, 1.0, 2.0, 6.0)().item()


@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_half_precision_modules_keep_their_means_wide(convert):
    mean = getattr(after(0.999, *[0.0] * 100), convert)()
    assert mean.mean.dtype == mean.num_values.dtype == torch.float32
    for _ in range(400):
        mean.update(torch.ones(()))
    assert mean.num_values.item() == 500
    assert mean().item() == pytest.approx(0.8)
    assert getattr(mean.double(), convert)().mean.dtype in (torch.float32, torch.float64)


def test_no_value_is_read_on_the_host():
    mean = RunningMean(0.9).to("meta")
    mean.update(torch.ones((), device="meta"))
    assert mean().device.type == "meta"
