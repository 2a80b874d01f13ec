"""Spectral norms of all layers at once, against PyTorch's parametrization of each; one step for many passes."""

import copy
from functools import partial

import pytest
import torch

from telecine import VideoAutoencoderLoss
from telecine.discriminators import PatchDiscriminator, PatchDiscriminator3D
from telecine.losses import gradient_penalty
from telecine.ops.pass_options import shared_spectral_norms

from .small_networks import features

NETWORKS = [
    partial(PatchDiscriminator, base_channels=4, norm="spectral"),
    partial(PatchDiscriminator3D, base_channels=4, norm="spectral"),
    features,
]
of_networks = pytest.mark.parametrize("make", NETWORKS)


def build(make):
    torch.manual_seed(0)
    return make().double().train()


def sample(network, seed=1):
    shape = (2, 3, 16, 17) if network.sees == "frames" else (2, 3, 3, 16, 17)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def by_pytorch(monkeypatch):
    """Return a function that lets each convolution compute its own weight from now on, as in compiled code."""
    return lambda: monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)


def left_vectors(network):
    return [buffer.clone() for name, buffer in network.named_buffers() if name.endswith("_u")]


def assert_close(ours, theirs):
    assert len(ours) == len(theirs) > 4
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@of_networks
def test_values_gradients_and_state_are_those_of_pytorch(make, by_pytorch):
    def two_steps():
        network, results = build(make), []
        x = sample(network).requires_grad_()
        for _ in range(2):  # the second from the state of the first
            logits, activations = network(x)
            total = (
                logits.square().sum()
                + 3 * gradient_penalty(real=x, logits=logits)
                + activations[-1].mean()
            )
            gradients = torch.autograd.grad(total, [x, *network.parameters()])
            results += [
                logits,
                *activations,
                *gradients,
                *(value.clone() for value in network.buffers()),
            ]
        return results

    ours = two_steps()
    by_pytorch()
    assert_close(ours, two_steps())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@of_networks
def test_gradients_under_autocast_are_those_of_pytorch(make, dtype, by_pytorch):
    def gradients():
        network = build(make).float()
        with torch.autocast("cpu", dtype):
            logits = network(sample(network).float()).logits
        return torch.autograd.grad(logits.float().mean(), [*network.parameters()])

    ours = gradients()
    assert all(gradient.dtype == torch.float32 for gradient in ours)
    by_pytorch()
    torch.testing.assert_close(ours, gradients(), rtol=1e-3, atol=1e-5)


def test_networks_do_not_share():
    network = build(NETWORKS[0])
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).mul_(-1)
    x = sample(network)
    with shared_spectral_norms():
        assert not torch.allclose(network(x).logits, other(x).logits)


def test_weights_are_differentiated_once():
    network = build(NETWORKS[0])
    logits = network(sample(network)).logits
    gradients = torch.autograd.grad(logits.mean(), [*network.parameters()], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(gradient.sum() for gradient in gradients).backward()


@of_networks
def test_passes_share_one_step(make):
    """The gradients of two losses are those of one sum after one step."""
    network, expected = build(make), build(make)
    real, fake = sample(network, 1), sample(network, 2)
    before = left_vectors(network)
    with shared_spectral_norms():
        with torch.no_grad(), shared_spectral_norms():  # one inside another has no effect
            network(fake)
        gradients = [
            torch.autograd.grad(network(x).logits.mean(), [*network.parameters()])
            for x in (real, fake)
        ]
        shared = [a + b for a, b in zip(*gradients, strict=True)]
    expected(real)
    after = left_vectors(network)
    torch.testing.assert_close(after, left_vectors(expected))
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    expected.eval()  # the step is done
    total = expected(real).logits.mean() + expected(fake).logits.mean()
    assert_close(shared, list(torch.autograd.grad(total, [*expected.parameters()])))
    network(real)
    assert any(not torch.equal(a, b) for a, b in zip(after, left_vectors(network), strict=True)), (
        "shared no more"
    )


@pytest.mark.parametrize("eager", [True, False])
def test_an_update_of_the_objective_takes_one_step(eager):
    network = build(NETWORKS[1])
    expected = copy.deepcopy(network)
    gan = {"feature_matching_loss_weight": 0.1}
    loss = VideoAutoencoderLoss(
        0, discr_3d_kwargs=network, perceptual_weight=0, eager_gradients=eager, gan=gan
    )
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    video = sample(network).tanh()
    loss.both_losses(video, (0.5 * video).requires_grad_(), 1)
    expected(video)
    assert len(passes) >= 2
    torch.testing.assert_close(left_vectors(network), left_vectors(expected))
