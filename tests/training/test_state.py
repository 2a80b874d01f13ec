"""When gradients are averaged over processes, the size of a run, and the moving average of its weights."""

from contextlib import contextmanager
from dataclasses import fields
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


def state_of(model=None, **parts):
    names = [field.name for field in fields(TrainState) if field.default is field.default_factory]
    return TrainState(**{**dict.fromkeys(names), "model": model, **parts})


def test_a_model_averages_gradients_in_the_last_backward_of_an_update():
    """A sharded one has a switch; that of DDP is the accelerator's."""
    sharded = state_of(Sharded(), is_sharded=True)
    inside = []

    @contextmanager
    def no_sync(model):
        inside.append(model)
        yield

    accelerator = SimpleNamespace(no_sync=no_sync)
    autoencoder = nn.Linear(1, 1)
    autoencoder.leaves_weights_unused = False
    wrapped = state_of(autoencoder, accelerator=accelerator, autoencoder=autoencoder)
    for state in (sharded, wrapped):
        with state.gradient_sync(is_last=True, num_frames=5):
            assert inside == []
    for state in (sharded, wrapped):
        with state.gradient_sync(is_last=False, num_frames=5):
            pass
    with wrapped.gradient_sync(is_last=True, num_frames=1):  # some weights have no gradient
        assert inside == [wrapped.model, wrapped.model]
    assert sharded.model.syncs == [True, False]


def test_the_size_counts_trained_weights_and_discriminators():
    discriminator = [nn.Parameter(torch.zeros(1000, 500))]
    objective = SimpleNamespace(
        get_trainable_parameters=lambda: discriminator, schedule=SimpleNamespace(disc_train_start=5)
    )
    autoencoder = nn.Sequential(
        nn.Linear(1000, 2000, bias=False), nn.Linear(1000, 1000, bias=False)
    )
    state = state_of(autoencoder=autoencoder, objective=objective)
    text = "3.00 M parameters, 0.50 M in discriminators"
    assert state.describe_size(6) == text
    assert (
        state.describe_size(5)
        == f"{text}, not trained before step 5 (`objective.gan.disc_train_start`)"
    )
    autoencoder[0].requires_grad_(False)
    discriminator.clear()
    assert (
        state.describe_size(5) == "3.00 M parameters (1.00 M of them trained), 0 in discriminators"
    )


def model_with(value):
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(value)
    return model


def update(average, model, value):
    model.weight.data.fill_(value)
    average.update()
    return average.averages["weight"].item()


def test_the_average_follows_the_formula_with_its_early_decay():
    model = model_with(0.0)
    average = MovingAverage(model, 0.5)
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
    model = model_with(-1e6)  # initial weights that would show
    average = MovingAverage(model, 0.999)
    for step in range(num_updates):
        averaged = update(average, model, float(step))
    assert num_updates - 1 - averaged == pytest.approx(num_updates / 10, rel=0.01)


def test_applied_swaps_the_averages_into_the_model():
    model = model_with(1.0)
    average = MovingAverage(model, 0.9)
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
    model = model_with(1.0)
    average = MovingAverage(model, 0.9)
    with average.applied():
        model.load_state_dict({"weight": torch.tensor([[7.0]])})
    assert (model.weight.item(), average.averages["weight"].item()) == (1.0, 7.0)
