import pytest
import torch
from torch import nn

from telecine.training.ema import MovingAverage


def model_with(value):
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(value)
    return model


def follow(average, model, value):
    model.weight.data.fill_(value)
    average.update()
    return average.averages["weight"].item()


def test_first_update_copies():
    average = MovingAverage(model := model_with(1.0), 0.9)
    assert follow(average, model, 5.0) == 5.0


def test_follows_the_formula_with_its_early_decay():
    average = MovingAverage(model := model_with(0.0), 0.5)
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    expected = values[0]
    follow(average, model, values[0])
    for num, value in enumerate(values[1:], start=1):
        decay = min(0.5, (1 + num) / (10 + num))
        expected = decay * expected + (1 - decay) * value
        assert follow(average, model, value) == pytest.approx(expected, rel=1e-6)
    assert (1 + num) / (10 + num) > 0.5, "the full decay must have been reached"


def test_decay_zero_is_the_model():
    average = MovingAverage(model := model_with(0.0), 0.0)
    assert [follow(average, model, value) for value in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]


def test_the_model_is_not_touched():
    average = MovingAverage(model := model_with(1.0), 0.9)
    average.update()
    follow(average, model, 100.0)
    assert model.weight.item() == 100.0
    assert average.averages["weight"].item() < 100.0


def test_the_model_has_the_averages_for_a_while():
    average = MovingAverage(model := model_with(1.0), 0.9)
    average.update()
    averaged = follow(average, model, 2.0)
    weight = model.weight
    with average.applied():
        assert model.weight.item() == averaged
    assert model.weight.item() == 2.0
    assert model.weight is weight, "an optimizer's parameter stays the same"
    with pytest.raises(RuntimeError, match="in between"), average.applied():
        raise RuntimeError("in between")
    assert (model.weight.item(), average.averages["weight"].item()) == (2.0, averaged)


def test_what_is_not_trained_is_not_averaged():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert set(MovingAverage(model, 0.9).averages) == {"weight"}


def test_weights_loaded_while_applied_are_the_averages():
    average = MovingAverage(model := model_with(1.0), 0.9)
    with average.applied():
        model.load_state_dict({"weight": torch.tensor([[7.0]])})
    assert (model.weight.item(), average.averages["weight"].item()) == (1.0, 7.0)
