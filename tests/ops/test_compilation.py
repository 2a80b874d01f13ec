import copy

import pytest
import torch
from torch import nn

from telecine.base.frozen import Frozen
from telecine.ops.compilation import Compiler
from telecine.ops.convolution import convolve, differentiated_twice


class Network(nn.Module):
    """Parts with several layers, and a last layer inside one more module."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4)) for _ in range(2)])
        self.head = nn.Sequential(nn.SiLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_parts_leave_the_last_layer_out():
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = Network()
    plain, x = copy.deepcopy(network), torch.rand(1, 3, 4, 4)
    Compiler("eager").compile_parts(network, network.head[1].weight)
    assert [part for part in network.modules() if part._compiled_call_impl] == list(network.blocks)
    found = []
    for each in (plain, network):
        value = each(x).square().sum()
        (at_last,) = torch.autograd.grad(value, each.head[1].weight, retain_graph=True)
        value.backward()
        found.append([at_last, *(weight.grad for weight in each.parameters())])
    torch.testing.assert_close(*found)
    with torch.no_grad():
        torch.testing.assert_close(network(x.expand(3, -1, -1, -1)), plain(x.expand(3, -1, -1, -1)))


def test_more_sizes_than_pytorch_compiles_for():
    torch._dynamo.reset()
    network, compiler = Network(), Compiler("eager")
    compiler.compile_parts(network, network.first.weight)

    def update():
        with compiler.update(), torch._dynamo.config.patch(recompile_limit=2):
            for size in (4, 5, 6, 7):
                network(torch.rand(1, 3, size, 4))

    message = "`dynamo_backend` must be no for what PyTorch cannot compile, but got eager, FailOnRecompileLimitHit"
    with pytest.raises(ValueError, match=message):
        update()


def test_the_double_backward_of_a_convolution():
    """Its backward is written by hand, as an `autograd.Function`. Two modules hide a tensor."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 3, 3, dtype=torch.float64)
    scale = Frozen({"a.scale": torch.tensor(3.0, dtype=torch.float64)})

    def penalty(inputs):
        x = inputs["x"]
        with differentiated_twice():
            y = convolve(x, conv.weight, conv.bias, stride=[2, 1, 1], padding=[1, 1, 1]).tanh()
        (gradient,) = torch.autograd.grad(scale.module["a.scale"] * y.sum(), x, create_graph=True)
        return {"value": y.mean(), "penalty": gradient.square().sum()}

    inputs = {"x": torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)}
    module = nn.ModuleList([conv, Frozen(nn.Sequential(scale))])
    found = Compiler("aot_eager").terms("key", penalty, module, inputs, leaf="x")
    leaves = [inputs["x"].requires_grad_(), *conv.parameters()]
    for name, value in penalty(inputs).items():
        expected = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        pairs = [(leaf, gradient) for leaf, gradient in zip(leaves, expected, strict=True) if gradient is not None]
        assert [id(leaf) for leaf, _ in found[name][1]] == [id(leaf) for leaf, _ in pairs]
        torch.testing.assert_close(found[name], (value.detach(), pairs))
    assert len(found) == 2
    assert scale.module["a.scale"] == 3
