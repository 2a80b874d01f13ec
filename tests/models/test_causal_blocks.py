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
    _repeat_first_frame,
    fold,
    unfold,
)

FACTORS = [(1, 1), (1, 2), (2, 1), (4, 4)]


def video(channels=4, frames=9, size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, frames, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("time", "space"), FACTORS)
def test_unfold_inverts_fold(time, space):
    folded = fold(video(), time, space)
    assert folded.shape == (2, 4 * time * space**2, 1 + 8 // time, 8 // space, 8 // space)
    torch.testing.assert_close(unfold(folded, time, space), video(), rtol=0, atol=0)


def test_fold_repeats_the_first_frame():
    first = fold(video(channels=1), 2, 1)[:, :, 0]
    torch.testing.assert_close(first[:, 0], first[:, 1], rtol=0, atol=0)


def test_the_first_frame_is_repeated_without_a_copy_for_a_count_of_0():
    clip = video()
    assert _repeat_first_frame(clip, 0) is clip
    torch.testing.assert_close(_repeat_first_frame(clip, 2)[:, :, :3], clip[:, :, :1].expand(-1, -1, 3, -1, -1))


def test_convolution_equals_a_sum_over_taps():
    layer = CausalConv(4, 5, (3, 1)).double()
    clip = video()
    taps = layer.conv.weight[..., 0, 0].unbind(-1)
    frames = []
    for index in range(9):
        past = [clip[:, :, max(index - back, 0)] for back in (2, 1, 0)]
        frames.append(sum(torch.einsum("oc,bchw->bohw", tap, frame) for tap, frame in zip(taps, past, strict=True)))
    expected = torch.stack(frames, dim=2) + layer.conv.bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(layer(clip), expected)


def test_norm_scales_every_position_to_a_root_mean_square_of_1():
    normed = ChannelNorm(4).double()(video() * 37)
    torch.testing.assert_close(normed.square().mean(1), torch.ones(2, 9, 8, 8, dtype=torch.float64))


def test_norm_of_zeros_is_finite_and_has_finite_gradients():
    zeros = torch.zeros(1, 4, 1, 2, 2, requires_grad=True)
    normed = ChannelNorm(4)(zeros)
    normed.sum().backward()
    assert (normed == 0).all()
    assert zeros.grad.isfinite().all()


def test_a_residual_block_starts_as_the_identity():
    torch.testing.assert_close(ResidualBlock(4).double()(video()), video(), rtol=0, atol=0)


@pytest.mark.parametrize(("outer", "inner"), [(4, 8), (8, 4), (4, 16)])
def test_downsample_and_upsample_shapes(outer, inner):
    down, up = Downsample(outer, inner).double(), Upsample(inner, outer).double()
    small = down(video(outer))
    assert small.shape == (2, inner, 9, 4, 4)
    assert up(small).shape == (2, outer, 9, 8, 8)


def test_the_shortcuts_keep_a_constant_video():
    down, up = (layer.double() for layer in (Downsample(4, 8), Upsample(8, 4)))
    for parameter in (*down.parameters(), *up.parameters()):
        torch.nn.init.zeros_(parameter)
    still = torch.ones(1, 4, 5, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(up(down(still)), still)


def test_norm_has_the_gradients_of_pytorchs_formula():
    norm, results = ChannelNorm(4).double(), []
    with torch.no_grad():
        norm.scale.copy_(torch.linspace(-1, 2, 4).view(-1, 1, 1, 1))
    for function in (norm, lambda x: F.normalize(x, dim=1, eps=1e-6) * (2 * norm.scale)):
        clip = video().requires_grad_()
        y = function(clip)
        results.append((y, *torch.autograd.grad(y.exp().sum(), [clip, norm.scale])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
