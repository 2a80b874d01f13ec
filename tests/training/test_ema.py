import pytest
import torch
from torch import nn

from telecine.training.ema import moving_average


def model_with(value):
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(value)
    return model


def weight(averaged):
    return averaged.module.weight.item()


def test_first_update_copies():
    averaged = moving_average(model_with(1.0), 0.9)
    averaged.update_parameters(model_with(5.0))
    assert weight(averaged) == 5.0


def test_follows_the_formula_with_its_early_decay():
    averaged = moving_average(model_with(0.0), 0.5)
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    expected = values[0]
    averaged.update_parameters(model_with(values[0]))
    for num, value in enumerate(values[1:], start=1):
        averaged.update_parameters(model_with(value))
        decay = min(0.5, (1 + num) / (10 + num))
        expected = decay * expected + (1 - decay) * value
        assert weight(averaged) == pytest.approx(expected, rel=1e-6)
    assert (1 + num) / (10 + num) > 0.5, "the full decay must have been reached"


def test_decay_zero_is_the_model():
    averaged = moving_average(model_with(0.0), 0.0)
    for value in (1.0, 2.0, 3.0):
        averaged.update_parameters(model_with(value))
    assert weight(averaged) == 3.0


def test_the_model_is_not_touched():
    model = model_with(1.0)
    averaged = moving_average(model, 0.9)
    averaged.update_parameters(model)
    averaged.update_parameters(model_with(100.0))
    assert model.weight.item() == 1.0
    assert not torch.equal(averaged.module.weight, model.weight)
