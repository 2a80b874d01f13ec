"""The padded 3D convolution: PyTorch's values, and gradients that do not depend on what lay in memory before."""

import copy

import pytest
import torch
from torch import nn

from telecine import PatchDiscriminator3D
from telecine.discriminators import DiscriminatorBlock3D
from telecine.discriminators.convolution import Conv3d, padded_conv3d


@pytest.mark.parametrize("time", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [3, (3, 4, 4)])
@pytest.mark.parametrize("stride", [1, (1, 2, 2), 2])
def test_the_values_are_pytorchs(time, kernel, stride):
    torch.manual_seed(0)
    conv = Conv3d(2, 3, kernel, stride, padding=1).double()
    theirs = nn.Conv3d(2, 3, kernel, stride, padding=1).double()
    theirs.load_state_dict(conv.state_dict())
    x = torch.randn(2, 2, time, 6, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(conv(x), theirs(x))
    ours, expected = (torch.autograd.grad(c(x).square().sum(), [x, c.weight, c.bias]) for c in (conv, theirs))
    torch.testing.assert_close(ours, expected)
    other = torch.randn_like(conv.weight)
    expected = nn.functional.conv3d(x, other, conv.bias, conv.stride, conv.padding)
    torch.testing.assert_close(padded_conv3d(x, conv, other), expected)


def fill_memory_with_nan():
    """Leave NaN in the blocks that the allocator hands out next."""
    blocks = [torch.full((size,), float("nan")) for size in (10**4, 10**5, 3 * 10**5, 10**6, 4 * 10**6) * 2]
    del blocks


@pytest.mark.parametrize(
    "make", [lambda: DiscriminatorBlock3D(16, 16), lambda: PatchDiscriminator3D(dim=16, num_temporal_layers=0)]
)
def test_bfloat16_gradients_of_two_frames_are_those_of_float32(make):
    torch.manual_seed(0)
    network = make()
    wide = copy.deepcopy(network)
    channels = 16 if isinstance(network, DiscriminatorBlock3D) else 3
    x = torch.randn(2, channels, 2, 32, 32, requires_grad=True)
    for _ in range(3):
        gradients = []
        for module, autocast in ((network, True), (wide, False)):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = module(x)
            logits = getattr(output, "logits", output)
            fill_memory_with_nan()
            gradients.append(torch.autograd.grad(logits.float().square().mean(), [x, *module.parameters()]))
        for ours, expected in zip(*gradients, strict=True):
            assert ours.isfinite().all()
            assert (ours - expected).norm() <= 0.3 * expected.norm() + 1e-6
