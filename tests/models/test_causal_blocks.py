"""The layers of the causal autoencoder."""

import pytest
import torch
from torch.nn import functional as F

from telecine.models.causal_blocks import (
    CausalConv,
    ChannelNorm,
    Downsample,
    ResidualBlock,
    Upsample,
    patchify,
    unpatchify,
)

FACTORS = [(1, 1), (1, 2), (2, 1), (4, 4)]


def video(channels=4, frames=9, size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, frames, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("time", "space"), FACTORS)
def test_unfold_inverts_fold(time, space):
    patches = patchify(video(), time, space)
    assert patches.shape == (2, 4 * time * space**2, 1 + 8 // time, 8 // space, 8 // space)
    torch.testing.assert_close(unpatchify(patches, time, space), video(), rtol=0, atol=0)


def test_convolution_equals_a_sum_over_taps():
    layer = CausalConv(4, 5, (3, 1)).double()
    clip = video()
    taps = layer.conv.weight[..., 0, 0].unbind(-1)
    frames = []
    for index in range(9):
        past = [clip[:, :, max(index - back, 0)] for back in (2, 1, 0)]
        frames.append(
            sum(
                torch.einsum("oc,bchw->bohw", tap, frame)
                for tap, frame in zip(taps, past, strict=True)
            )
        )
    expected = torch.stack(frames, dim=2) + layer.conv.bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(layer(clip), expected)


@pytest.mark.parametrize(("outer", "inner"), [(4, 8), (8, 4), (4, 16)])
def test_downsample_and_upsample_have_shortcuts_that_keep_a_constant_video(outer, inner):
    down = Downsample(outer, inner).double()
    up = Upsample(inner, outer).double()
    small = down(video(outer))
    assert small.shape == (2, inner, 9, 4, 4)
    assert up(small).shape == (2, outer, 9, 8, 8)
    for parameter in (*down.parameters(), *up.parameters()):
        torch.nn.init.zeros_(parameter)
    still = torch.ones(1, outer, 5, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(up(down(still)), still)


def test_norm_has_the_gradients_of_pytorchs_formula():
    norm = ChannelNorm(4).double()
    with torch.no_grad():
        norm.scale.copy_(torch.linspace(-1, 2, 4).view(-1, 1, 1, 1))
    results = []
    for function in (norm, lambda x: F.normalize(x, dim=1, eps=1e-6) * (2 * norm.scale)):
        clip = video().requires_grad_()
        y = function(clip)
        results.append((y, *torch.autograd.grad(y.exp().sum(), [clip, norm.scale])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["3d", "2+1d", "depthwise", "2d"])
def test_a_residual_block_starts_as_the_identity_and_trains_all_weights(kind):
    torch.manual_seed(0)
    block = ResidualBlock(4, time_kernel=2, convolution=kind)
    video = torch.randn(1, 4, 3, 5, 5)
    assert torch.equal(block(video), video)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(3):  # each makes the gradient of the layers before reach further
        optimizer.zero_grad()
        (block(video) * video.flip(4)).sum().backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in block.parameters())
