"""LoRA adapters are those of the LoRA paper, and merging them does not change the output."""

import copy

import pytest
import torch
from torch import nn

from telecine.models.lora import (
    LAYERS,
    add_low_rank,
    low_rank_layers,
    merge_in_place,
    merge_low_rank,
)

INPUTS = {
    nn.Linear: (2, 4),
    nn.Conv1d: (2, 4, 6),
    nn.Conv2d: (2, 4, 6, 6),
    nn.Conv3d: (2, 4, 6, 6, 6),
}


def build(cls, **settings):
    torch.manual_seed(0)
    return nn.Sequential(cls(4, 6) if cls is nn.Linear else cls(4, 6, 3, **settings))


@pytest.mark.parametrize(
    ("cls", "settings"),
    [*((cls, {}) for cls in LAYERS), (nn.Conv3d, {"groups": 2, "stride": 2, "padding": 1})],
)
def test_the_update_is_alpha_over_rank_times_b_a(cls, settings):
    model = build(cls, **settings)
    x = torch.rand(INPUTS[cls])
    weight = model[0].weight.detach().clone()
    expected = model(x)
    add_low_rank(model, ["0"], rank=2, alpha=6.0)
    assert torch.equal(model(x), expected)
    update = model[0].parametrizations.weight[0]
    assert update.down.any()
    with torch.no_grad():
        update.up.normal_()
    updated = weight + 3 * torch.einsum("or,ri->oi", update.up, update.down).reshape(weight.shape)
    torch.testing.assert_close(model[0].weight, updated)
    merged = merge_low_rank(model)
    assert set(merged.state_dict()) == {"0.weight", "0.bias"}
    assert type(merged[0]) is cls
    assert torch.equal(merged(x), model(x))
    assert low_rank_layers(model) == [model[0]]


def test_merged_weights_may_be_stored_elsewhere():
    """As a checkpoint of large weights does, which holds them in other memory."""
    model = build(nn.Linear)
    add_low_rank(model, ["0"], rank=2, alpha=6.0)
    torch.nn.init.normal_(model[0].parametrizations.weight[0].up)
    weight = model[0].weight.detach()
    stored = []

    def store(tensor):
        stored.append(tensor.clone())
        return stored[0]

    merge_in_place(model, store)
    assert model[0].weight.data_ptr() == stored[0].data_ptr()
    assert torch.equal(model[0].weight, weight)


def test_only_updates_have_gradients():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    add_low_rank(model, ["1"], rank=3, alpha=3.0)
    trained = {
        name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad
    }
    assert trained == {
        "1.parametrizations.weight.0.down": (3, 4),
        "1.parametrizations.weight.0.up": (4, 3),
    }


def test_copies_do_not_share_updates():
    model = build(nn.Conv3d)
    add_low_rank(model, ["0"], rank=1, alpha=1.0)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[0].parametrizations.weight[0].up.fill_(1)
    assert not torch.equal(copied[0].weight, model[0].weight)


def test_merging_a_model_without_updates_returns_the_model():
    model = build(nn.Conv2d)
    assert merge_low_rank(model) is model
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
    assert merge_low_rank(spectral) is spectral
