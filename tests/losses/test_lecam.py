"""LeCam with its running means: unbiased from the first value on, saved, equal on every rank."""

import pytest
import torch

from telecine.losses.lecam import LeCam, _RunningMean, lecam


@pytest.fixture
def other_rank(monkeypatch):
    """Return a function that sets the values of a second rank."""

    def set_values(values):
        monkeypatch.setattr("telecine.losses.lecam.average_over_ranks", lambda x: (x + torch.as_tensor(values)) / 2)

    return set_values


@pytest.fixture
def after(monkeypatch):
    """Return a function that sets the decay, and returns the running mean of values."""

    def mean_of(decay, *values):
        monkeypatch.setattr("telecine.losses.lecam._DECAY", decay)
        mean = _RunningMean()
        for value in values:
            mean.update(torch.tensor(value))
        return mean

    return mean_of


def test_the_first_values_are_averaged_evenly(after):
    assert after(0.99).mean.item() == 0
    assert after(0.99, 3.0).mean.item() == 3
    assert after(0.99, 3.0, 5.0).mean.item() == 4
    assert after(0.99, 3.0, 5.0, 10.0).mean.item() == 6


def test_then_the_decay_takes_over(after):
    expected, mean = 4.0, after(0.5, 3.0, 5.0)
    for value in (7.0, -2.0, 11.0):
        mean.update(torch.tensor(value))
        expected = 0.5 * expected + 0.5 * value
        assert mean.mean.item() == pytest.approx(expected)


def test_without_decay_the_newest_value_counts(after):
    assert after(0.0, 3.0, 5.0).mean.item() == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_ignored(bad, after):
    assert after(0.9, bad).mean.item() == 0
    assert after(0.9, 2.0, bad, 4.0).mean.item() == 3


def test_the_mean_has_no_graph(after):
    mean = after(0.9)
    mean.update(torch.tensor(2.0, requires_grad=True))
    assert not mean.mean.requires_grad


def test_save_and_load(after):
    restored = after(0.9)
    restored.load_state_dict(after(0.9, 1.0, 2.0).state_dict())
    restored.update(torch.tensor(6.0))
    assert restored.mean.item() == after(0.9, 1.0, 2.0, 6.0).mean.item()


@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_half_precision_modules_keep_float32_means(convert, after):
    mean = getattr(after(0.999, *[0.0] * 100), convert)()
    assert mean.mean.dtype == mean.num_values.dtype == torch.float32
    for _ in range(400):
        mean.update(torch.ones(()))
    assert mean.num_values.item() == 500
    assert mean.mean.item() == pytest.approx(0.8)
    assert getattr(mean.double(), convert)().mean.dtype == torch.float64


def test_an_update_does_not_synchronise():
    mean = _RunningMean().to("meta")
    mean.update(torch.ones((), device="meta"))
    assert mean.mean.device.type == "meta"


class TestLeCam:
    def test_the_means_are_updated_first(self):
        regulariser = LeCam()
        real, fake = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([-1.0, 0.0], requires_grad=True)
        value = regulariser(real=real, fake=fake)
        expected = lecam(real=real, fake=fake, real_average=torch.tensor(2.0), fake_average=torch.tensor(-0.5))
        assert value.item() == expected.item() > 0
        assert value.requires_grad

    def test_an_update_leaves_graphs_of_earlier_ones_intact(self):
        regulariser, logits = LeCam(), torch.ones(2, requires_grad=True)
        sum(regulariser(real=logits.exp(), fake=-logits.exp()) for _ in range(2)).backward()
        assert logits.grad.isfinite().all()

    @pytest.mark.parametrize("how", ["eval", "no_grad"])
    def test_validation_does_not_update_them(self, how):
        regulariser = LeCam()
        regulariser(real=torch.ones(2), fake=-torch.ones(2))
        before = {name: value.clone() for name, value in regulariser.state_dict().items()}
        if how == "eval":
            regulariser.eval()
        with torch.set_grad_enabled(how != "no_grad"):
            regulariser(real=torch.ones(2) * 9, fake=torch.ones(2) * 9)
        assert all(torch.equal(value, before[name]) for name, value in regulariser.state_dict().items())

    def test_they_are_averaged_over_ranks(self, other_rank):
        other_rank([5.0, -5.0])
        regulariser = LeCam()
        regulariser(real=torch.ones(2), fake=-torch.ones(2))
        assert (regulariser.real.mean.item(), regulariser.fake.mean.item()) == (3, -3)
