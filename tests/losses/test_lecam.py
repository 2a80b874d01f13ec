"""LeCam with its running means: unbiased from the first value on, saved, equal on every rank."""

import pytest
import torch

from telecine.losses.lecam import LeCam, RunningMean, lecam


def mean_of(*values, decay=0.99):
    mean = RunningMean(decay)
    for value in values:
        mean.update(torch.tensor(value))
    return mean


@pytest.mark.parametrize(
    ("decay", "values", "expected"),
    [
        (0.99, (), 0.0),
        (0.99, (3.0, 5.0, 10.0), 6.0),  # the first values are averaged evenly
        (0.5, (3.0, 5.0, 7.0, -2.0), 0.25 * 4 + 0.25 * 7 - 0.5 * 2),  # then the decay takes over
        (0.0, (3.0, 5.0), 5.0),
        (0.9, (float("nan"),), 0.0),
        (0.9, (2.0, float("inf"), -float("inf"), float("nan"), 4.0), 3.0),
    ],
)
def test_a_running_mean(decay, values, expected):
    assert mean_of(*values, decay=decay).mean.item() == pytest.approx(expected)


def test_the_default_decay_is_that_of_1d_tokenizer():
    assert LeCam().real.decay == 0.999


def test_the_mean_has_no_graph_and_is_saved():
    mean = mean_of(1.0, 2.0)
    restored = mean_of()
    restored.load_state_dict(mean.state_dict())
    restored.update(torch.tensor(6.0, requires_grad=True))
    assert restored.mean.item() == 3
    assert not restored.mean.requires_grad


@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_half_precision_modules_keep_float32_means(convert):
    mean = getattr(mean_of(*[0.0] * 100, decay=0.999), convert)()
    assert mean.mean.dtype == mean.num_values.dtype == torch.float32
    for _ in range(400):
        mean.update(torch.ones(()))
    assert mean.num_values.item() == 500
    assert mean.mean.item() == pytest.approx(0.8)
    assert getattr(mean.double(), convert)().mean.dtype == torch.float64


def test_an_update_does_not_synchronise():
    mean = RunningMean().to("meta")
    mean.update(torch.ones((), device="meta"))
    assert mean.mean.device.type == "meta"


def test_the_means_are_updated_first():
    regulariser = LeCam()
    assert list(regulariser.state_dict()) == [
        "real.mean",
        "real.num_values",
        "fake.mean",
        "fake.num_values",
    ]
    real = torch.tensor([1.0, 3.0], requires_grad=True)
    fake = torch.tensor([-1.0, 0.0], requires_grad=True)
    value = regulariser(real=real, fake=fake)
    expected = lecam(
        real=real, fake=fake, real_average=torch.tensor(2.0), fake_average=torch.tensor(-0.5)
    )
    assert value.item() == expected.item() > 0
    (
        value + regulariser(real=real, fake=fake)
    ).backward()  # the second update leaves the first graph intact
    assert real.grad.isfinite().all()


@pytest.mark.parametrize(("training", "grad"), [(False, True), (True, False)])
def test_validation_does_not_update_them(training, grad):
    regulariser = LeCam()
    regulariser(real=torch.ones(2), fake=-torch.ones(2))
    before = {name: value.clone() for name, value in regulariser.state_dict().items()}
    with torch.set_grad_enabled(grad):
        regulariser.train(training)(real=torch.ones(2) * 9, fake=torch.ones(2) * 9)
    assert all(torch.equal(value, before[name]) for name, value in regulariser.state_dict().items())
