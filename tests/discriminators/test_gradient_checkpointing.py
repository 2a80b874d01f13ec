"""Gradient checkpointing: the same logits, gradients and gradients of gradients, with less memory."""

import copy

import pytest
import torch

from telecine import (
    Discriminator,
    Discriminator3D,
    Discriminator3DWithfirstframe,
    PatchDiscriminator3D,
)
from telecine.discriminators import frozen
from telecine.losses import gradient_penalty

SMALL = {"dim": 2, "image_size": 16, "linear_attn_heads": 2}
NETWORKS = [
    lambda: Discriminator(**SMALL),
    lambda: Discriminator3D(**SMALL, frame_num=4, antialiased_downsample=True),
    lambda: Discriminator3DWithfirstframe(**SMALL, frame_num=5),
    lambda: PatchDiscriminator3D(base_channels=4),
    lambda: PatchDiscriminator3D(base_channels=4, norm="spectral"),
]


def results(network, x):
    x = x.clone().requires_grad_()
    logits = network(x).logits
    total = logits.square().mean() + gradient_penalty(real=x, logits=logits)
    return [logits, *torch.autograd.grad(total, [x, *network.parameters()], allow_unused=True)]


@pytest.mark.parametrize("make", NETWORKS)
def test_values_and_gradients_stay_the_same(make):
    torch.manual_seed(0)
    network = make().double()
    checkpointed = copy.deepcopy(network)
    checkpointed.enable_gradient_checkpointing()
    runs = []
    checkpointed.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    frames = () if network.sees == "frames" else (5,)
    x = torch.randn(2, 3, *frames, 16, 17, dtype=torch.float64)
    torch.testing.assert_close(
        results(checkpointed, x), results(network, x), rtol=1e-10, atol=1e-12
    )
    assert len(runs) >= 2
    runs.clear()
    with torch.no_grad():
        checkpointed(x)
    assert len(runs) == 1


def saved_bytes(network, x):
    """Return the bytes that the graph of a forward stores, without weights."""
    ignored = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(x)
    assert output.logits.requires_grad
    return sum(size for pointer, size in storages.items() if pointer not in ignored)


def test_less_memory():
    network = Discriminator3D(dim=4, image_size=32, frame_num=4)
    x = torch.randn(1, 3, 4, 32, 32)
    before = saved_bytes(network, x)
    network.enable_gradient_checkpointing()
    assert saved_bytes(network, x) < 0.5 * before


def test_a_block_frozen_in_the_forward_is_frozen_in_the_recomputation():
    network = Discriminator3D(**SMALL, frame_num=4)
    network.enable_gradient_checkpointing()
    x = torch.randn(1, 3, 4, 16, 16, requires_grad=True)
    with frozen(network):
        logits = network(x).logits
    (first,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)  # now nothing is frozen
    logits.sum().backward()  # the second recomputation
    assert torch.equal(x.grad, first)
    assert x.grad.abs().max() > 0
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in network.parameters()
    )
