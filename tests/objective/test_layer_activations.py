"""The gradient of a layer's weight from the layer's inputs and outputs equals autograd's."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

from telecine.objective.layer_activations import LayerActivations
from telecine.ops.checkpoint_call import checkpoint_call

LAYERS = [
    (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 2, 3, 4, 4)),
    (
        lambda: nn.Conv2d(2, 3, 3, stride=2, bias=False, padding_mode="replicate", padding=1),
        (2, 2, 6, 6),
    ),
    (lambda: nn.Linear(4, 3), (2, 5, 4)),
]


def gradient_of(activations, loss):
    (gradient,) = activations.gradients([loss])
    return gradient


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_the_gradient_is_that_of_the_weight(make, shape):
    torch.manual_seed(0)
    layer = make().double()
    activations = LayerActivations(layer)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    loss = (layer(2 * x).sin().sum() + layer(x).square().sum()) * 3  # the layer runs twice
    (expected,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
    torch.testing.assert_close(gradient_of(activations, loss), expected)
    torch.testing.assert_close(
        gradient_of(activations, loss), expected
    )  # the graph is kept, nothing is added
    loss.backward()
    assert x.grad.abs().max() > 0


class Causal(nn.Conv1d):
    """A convolution that takes the frames before its input as a second argument, as in chunked decoders."""

    def forward(self, x, *, before=None):
        return super().forward(x if before is None else torch.cat([before, x], dim=-1))


def test_keyword_arguments_count():
    layer = Causal(2, 3, 2).double()
    activations = LayerActivations(layer)
    x = torch.randn(1, 2, 6, dtype=torch.float64)
    loss = layer(x).sin().sum() + layer(x, before=x[..., :1]).square().sum()
    (expected,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
    torch.testing.assert_close(gradient_of(activations, loss), expected)


def test_only_calls_since_clear_count():
    layer = nn.Linear(2, 2)
    activations = LayerActivations(layer)
    assert not activations.has_gradient
    first = layer(torch.ones(1, 2)).sum()
    assert activations.has_gradient
    activations.clear()
    assert not activations.has_gradient
    second = layer(torch.ones(1, 2)).sum()
    assert gradient_of(activations, second).eq(1).all()
    assert gradient_of(activations, first) is None, "it does not depend on the recorded call"


def test_calls_without_a_graph_are_not_recorded():
    layer = nn.Linear(2, 2)
    activations = LayerActivations(layer)
    with torch.no_grad():
        layer(torch.ones(1, 2))
    assert not activations.has_gradient
    layer.requires_grad_(False)
    layer(torch.ones(1, 2))
    assert not activations.has_gradient
    assert gradient_of(activations, torch.ones((), requires_grad=True)) is None


def test_a_copied_layer_records_nothing():
    """An averaged model is a copy; nothing would ever clear its calls."""
    layer = nn.Linear(2, 2)
    activations = LayerActivations(layer)
    y = layer(torch.ones(1, 2)).sum()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        output = weakref.ref(other(torch.ones(1, 2)))
        assert output() is None, "nothing keeps the output"
    copied = copy.deepcopy(activations)
    assert not copied.has_gradient
    assert gradient_of(copied, y) is None
    assert gradient_of(activations, y).eq(1).all()


def test_it_replaces_the_weight_as_last_layer(make_loss, make_discriminator, autoencoder, clip):
    loss = make_loss(
        adversarial_loss_weight=1,
        discr_3d_kwargs=make_discriminator(3.0),
        perceptual={"num_frames": "all"},
    )
    activations = LayerActivations(autoencoder.decoder.conv_out)
    logs = []
    for last_layer in (autoencoder.last_layer, activations):
        activations.clear()
        logs.append(loss(clip(), autoencoder(clip()), 0, 0, last_layer=last_layer)[1])
    torch.testing.assert_close(*logs)
    assert logs[0]["train/adaptive_weight"] != 1
    activations.clear()
    assert (
        loss(clip(), autoencoder(clip()).detach(), 0, 0, last_layer=activations)[1][
            "train/adaptive_weight"
        ]
        == 1
    )


def test_inputs_that_are_not_kept_are_computed_again():
    """As for the temporal chunks of a decoder: each call has two layers, and takes what the call before left."""
    torch.manual_seed(0)
    first = nn.Linear(3, 3).double()
    last = nn.Linear(3, 2).double()
    activations = LayerActivations(last)

    def decode(x, cache):
        hidden = first(x).tanh() if cache[0] is None else (first(x) + cache[0]).tanh()
        cache[0] = hidden
        return torch.cat([last(hidden), last(hidden.square())])

    x = torch.randn(4, 3, dtype=torch.float64)
    cache = [None]
    output = torch.cat([checkpoint_call(decode, part, cache) for part in x.split(1)])
    losses = [output.sin().sum(), output.square().sum(), torch.ones((), requires_grad=True)]
    expected = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0] for loss in losses[:2]]
    assert output.requires_grad
    *gradients, unrelated = activations.gradients(losses)
    torch.testing.assert_close(gradients, expected)
    assert unrelated is None
    losses[0].backward()
    assert activations.has_gradient
    torch.testing.assert_close(activations.gradients(losses[1:2]), expected[1:])
