"""When gradients are averaged over processes."""

from contextlib import contextmanager
from types import SimpleNamespace

from torch import nn

from telecine.training.state import Rollback, TrainState


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
        with state.no_sync(enabled):
            pass
    assert state.model.syncs == [False, True]
    assert state.is_sharded
    assert not state_of(nn.Linear(1, 1)).is_sharded


def test_a_wrapped_model_averages_gradients_unless_told_otherwise():
    inside = []

    @contextmanager
    def no_sync(model):
        inside.append(model)
        yield

    state = state_of(nn.Linear(1, 1), SimpleNamespace(no_sync=no_sync))
    with state.no_sync(False):
        assert inside == []
    with state.no_sync(True):
        assert inside == [state.model]


def test_the_size_counts_trained_weights_and_discriminators():
    state = state_of(None)
    state.autoencoder = nn.Sequential(nn.Linear(1000, 2000, bias=False), nn.Linear(1000, 1000, bias=False))
    discriminator = nn.Linear(1000, 500, bias=False)
    state.objective = SimpleNamespace(
        get_trainable_parameters=lambda: list(discriminator.parameters()), weights=SimpleNamespace(disc_train_start=5)
    )
    assert state.describe_size(6) == "3.00 M parameters, 0.50 M in discriminators"
    state.autoencoder[0].requires_grad_(False)
    assert state.describe_size(6) == "3.00 M parameters (1.00 M of them trained), 0.50 M in discriminators"


def test_discriminators_that_a_short_run_does_not_train_are_named():
    state = state_of(None)
    state.autoencoder = nn.Linear(1, 1)
    discriminator, weights = nn.Linear(100, 100), SimpleNamespace(disc_train_start=5)
    state.objective = SimpleNamespace(get_trainable_parameters=lambda: [*discriminator.parameters()], weights=weights)
    named = "not trained before step 5 (`objective.gan.disc_train_start`)"
    assert [named in state.describe_size(steps) for steps in (5, 6)] == [True, False]
    state.objective.get_trainable_parameters = list
    assert named not in state.describe_size(5)


def test_each_rollback_halves_the_learning_rates():
    state, factors = state_of(None), []
    for _ in range(3):
        factors.append(state.lr_factor)
        state.rollbacks.append(Rollback(12, 10, "a"))
    assert factors == [1.0, 0.5, 0.25]
