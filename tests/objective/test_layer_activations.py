"""The gradient of a layer's weight from what went in and came out, as autograd has it."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

from telecine.objective.layer_uses import LayerUses

LAYERS = [
    (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 2, 3, 4, 4)),
    (lambda: nn.Conv2d(2, 3, 3, stride=2, bias=False, padding_mode="replicate", padding=1), (2, 2, 6, 6)),
    (lambda: nn.Linear(4, 3), (2, 5, 4)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_it_is_that_of_the_weight(make, shape):
    torch.manual_seed(0)
    layer = make().double()
    uses = LayerUses(layer)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    loss = (layer(2 * x).sin().sum() + layer(x).square().sum()) * 3  # the layer runs twice
    (expected,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
    torch.testing.assert_close(uses.gradient(loss), expected)
    torch.testing.assert_close(uses.gradient(loss), expected)  # the graph is kept, nothing is recorded twice
    assert uses.shape == layer.weight.shape
    loss.backward()
    assert x.grad.abs().max() > 0


class Causal(nn.Conv1d):
    """A convolution that is handed the frames before, as those of chunked decoders are."""

    def forward(self, x, *, before=None):
        return super().forward(x if before is None else torch.cat([before, x], dim=-1))


def test_all_that_a_layer_is_given_counts():
    layer = Causal(2, 3, 2).double()
    uses = LayerUses(layer)
    x = torch.randn(1, 2, 6, dtype=torch.float64)
    loss = layer(x).sin().sum() + layer(x, before=x[..., :1]).square().sum()
    (expected,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
    torch.testing.assert_close(uses.gradient(loss), expected)


def test_only_the_calls_since_it_forgot_count():
    layer = nn.Linear(2, 2)
    uses = LayerUses(layer)
    assert not uses.requires_grad
    first = layer(torch.ones(1, 2)).sum()
    assert uses.requires_grad
    uses.forget()
    assert not uses.requires_grad
    second = layer(torch.ones(1, 2)).sum()
    assert uses.gradient(second).eq(1).all()
    assert uses.gradient(first) is None, "it does not depend on the call that is known"


def test_calls_without_a_graph_are_not_kept():
    layer = nn.Linear(2, 2)
    uses = LayerUses(layer)
    with torch.no_grad():
        layer(torch.ones(1, 2))
    assert not uses.requires_grad


def test_a_copied_layer_leaves_the_calls_behind():
    """Averages of weights are a copy of the model, which nobody would tell to forget."""
    layer = nn.Linear(2, 2)
    uses = LayerUses(layer)
    y = layer(torch.ones(1, 2)).sum()
    copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for other in copies:
        with_graph = weakref.ref(other(torch.ones(1, 2)))
        assert with_graph() is None, "nothing keeps it"
    assert uses.gradient(y).eq(1).all()
