"""When gradients are averaged over processes, the size of a run, and the moving average of its weights."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from telecine.training.state import MovingAverage, TrainState


class Sharded(nn.Module):
    """Has FSDP2's switch."""

    def __init__(self):
        super().__init__()
        self.syncs = []

    def set_requires_gradient_sync(self, requires_gradient_sync):
        self.syncs.append(requires_gradient_sync)


def state_of(model, accelerator=None):
    names = ("autoencoder", "objective", "optimizer", "disc_optimizer", "ema", "last_layer", "grad_clip", "seed")
    return TrainState(accelerator=accelerator, model=model, **dict.fromkeys(names))


def test_a_sharded_model_averages_gradients_unless_told_otherwise():
    state = state_of(Sharded())
    for enabled in (True, False):
        with state.gradient_sync(enabled=enabled):
            pass
    assert state.model.syncs == [True, False]
    assert state.is_sharded
    assert not state_of(nn.Linear(1, 1)).is_sharded


def test_a_wrapped_model_averages_gradients_unless_told_otherwise():
    inside = []

    @contextmanager
    def no_sync(model):
        inside.append(model)
        yield

    state = state_of(nn.Linear(1, 1), SimpleNamespace(no_sync=no_sync))
    with state.gradient_sync(enabled=True):
        assert inside == []
    with state.gradient_sync(enabled=False):
        assert inside == [state.model]


def test_the_size_counts_trained_weights_and_discriminators():
    state = state_of(None)
    state.autoencoder = nn.Sequential(nn.Linear(1000, 2000, bias=False), nn.Linear(1000, 1000, bias=False))
    discriminator = nn.Linear(1000, 500, bias=False)
    state.objective = SimpleNamespace(
        get_trainable_parameters=lambda: list(discriminator.parameters()), schedule=SimpleNamespace(disc_train_start=5)
    )
    assert state.describe_size(6) == "3.00 M parameters, 0.50 M in discriminators"
    state.autoencoder[0].requires_grad_(False)
    assert state.describe_size(6) == "3.00 M parameters (1.00 M of them trained), 0.50 M in discriminators"


def test_discriminators_that_a_short_run_does_not_train_are_named():
    state = state_of(None)
    state.autoencoder = nn.Linear(1, 1)
    discriminator, schedule = nn.Linear(100, 100), SimpleNamespace(disc_train_start=5)
    state.objective = SimpleNamespace(get_trainable_parameters=lambda: [*discriminator.parameters()], schedule=schedule)
    named = "not trained before step 5 (`objective.gan.disc_train_start`)"
    assert [named in state.describe_size(steps) for steps in (5, 6)] == [True, False]
    state.objective.get_trainable_parameters = list
    assert named not in state.describe_size(5)


def model_with(value):
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(value)
    return model


def update(average, model, value):
    model.weight.data.fill_(value)
    average.update()
    return average.averages["weight"].item()


def test_the_average_follows_the_formula_with_its_early_decay():
    average = MovingAverage(model := model_with(0.0), 0.5)
    values = [float(value) for value in range(1, 13)]
    expected = values[0]
    assert update(average, model, values[0]) == expected, "the first update copies"
    for num, value in enumerate(values[1:], start=1):
        decay = min(0.5, (1 + num) / (10 + num))
        expected = decay * expected + (1 - decay) * value
        assert update(average, model, value) == pytest.approx(expected, rel=1e-6)
    assert (1 + num) / (10 + num) > 0.5, "the full decay must have been reached"
    assert model.weight.item() == values[-1], "the model keeps its weights"


@pytest.mark.parametrize("num_updates", [10, 40, 1000])
def test_the_average_of_a_short_run_spans_its_last_tenth(num_updates):
    average = MovingAverage(model := model_with(-1e6), 0.999)  # initial weights that would show
    for step in range(num_updates):
        averaged = update(average, model, float(step))
    assert num_updates - 1 - averaged == pytest.approx(num_updates / 10, rel=0.01)


def test_with_decay_zero_the_average_equals_the_model():
    average = MovingAverage(model := model_with(0.0), 0.0)
    assert [update(average, model, value) for value in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]


def test_applied_swaps_the_averages_into_the_model():
    average = MovingAverage(model := model_with(1.0), 0.9)
    average.update()
    averaged = update(average, model, 2.0)
    weight = model.weight
    with average.applied():
        assert model.weight.item() == averaged
    assert model.weight.item() == 2.0
    assert model.weight is weight, "the optimizer's parameter stays the same object"
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        raise RuntimeError("inside")
    assert (model.weight.item(), average.averages["weight"].item()) == (2.0, averaged)


def test_frozen_weights_are_not_averaged():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert set(MovingAverage(model, 0.9).averages) == {"weight"}


def test_weights_loaded_while_applied_become_the_averages():
    average = MovingAverage(model := model_with(1.0), 0.9)
    with average.applied():
        model.load_state_dict({"weight": torch.tensor([[7.0]])})
    assert (model.weight.item(), average.averages["weight"].item()) == (1.0, 7.0)
