from itertools import pairwise

import pytest
import torch
from torch import nn

from telecine.settings import OptimizerConfig
from telecine.training.optim import (
    FINAL_LR_SCALE,
    MovingAverage,
    clip_gradients,
    describe_warmup,
    lr_scale,
    set_lr,
    update_ratio,
)


def test_warmup_rises_linearly_to_one():
    config = OptimizerConfig(warmup_steps=4)
    assert [lr_scale(config, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_without_warmup_the_first_step_has_the_full_rate():
    assert lr_scale(OptimizerConfig(warmup_steps=0), 0, 10) == 1.0


def test_a_run_that_ends_within_its_warmup_says_so():
    config = OptimizerConfig(warmup_steps=500)
    assert describe_warmup(config, 500) == []
    (line,) = describe_warmup(config, 40)
    assert "after 40 of 500 steps, 0.08 of `optimizer.lr` is reached" in line
    assert lr_scale(config, 39, 40) == 0.08
    assert describe_warmup(OptimizerConfig(warmup_steps=0), 1) == []


def test_cosine_falls_from_one_to_its_final_scale():
    config = OptimizerConfig(warmup_steps=10, schedule="cosine")
    scales = [lr_scale(config, step, 110) for step in range(10, 111)]
    assert scales[0] == 1.0
    assert scales[50] == pytest.approx((1 + FINAL_LR_SCALE) / 2)
    assert scales[-1] == pytest.approx(FINAL_LR_SCALE)
    assert all(later <= earlier for earlier, later in pairwise(scales))
    assert lr_scale(config, 200, 110) == pytest.approx(FINAL_LR_SCALE)


def test_a_run_that_ends_with_its_warmup_starts_the_cosine_at_one():
    assert lr_scale(OptimizerConfig(warmup_steps=20, schedule="cosine"), 20, 20) == 1.0


def test_set_lr_sets_every_group():
    first, second = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": [second], "lr": 3.0}], lr=1.0)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def weights_with_gradients(*gradients):
    weights = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.tensor(gradient)
    return [*weights, nn.Parameter(torch.zeros(3))]  # the last one has no gradient


@pytest.mark.parametrize("max_norm", [1.0, 13.0, 100.0])
def test_clipping_equals_pytorchs_and_changes_no_gradient_below_the_limit(max_norm):
    gradients = ([3.0, 4.0], [12.0])
    ours, theirs = weights_with_gradients(*gradients), weights_with_gradients(*gradients)
    assert clip_gradients(ours, max_norm).item() == pytest.approx(13.0)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    for weight, other in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(weight.grad, other.grad)
    if max_norm == 100.0:
        assert [weight.grad.tolist() for weight in ours[:2]] == [[3.0, 4.0], [12.0]]


def test_update_ratio_is_relative_to_the_new_weights():
    before = [torch.tensor([0.0, 0.0]), torch.tensor([6.0])]
    after = [torch.tensor([3.0, 4.0]), torch.tensor([6.0])]
    assert update_ratio(before, after) == pytest.approx(5 / (9 + 16 + 36) ** 0.5)


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
