"""Blur, convolutions and space-to-depth down-sampling against loops and PyTorch's layers."""

import copy
import itertools

import pytest
import torch
from einops import rearrange
from torch import nn

from telecine import PatchDiscriminator3D
from telecine.discriminators.blocks import (
    Blur,
    DiscriminatorBlock3D,
    SpaceToDepthConv,
    padded_conv3d,
)

MODES = {"both": {}, "space": {"space_only": True}, "time": {"time_only": True}}
AXES = {"both": (True, True, True), "space": (False, True, True), "time": (True, False, False)}


def naive_blur(x, mode):
    """Sum over a 3 x 3 x 3 neighbourhood, with positions clamped to the video."""
    out = torch.zeros_like(x)
    sizes = x.shape[-3:]
    reaches = [(-1, 0, 1) if active else (0,) for active in AXES[mode]]
    for position in itertools.product(*map(range, sizes)):
        weights = 0
        for shift in itertools.product(*reaches):
            weight = 1
            for step, reach in zip(shift, reaches, strict=True):
                weight *= (2 if step == 0 else 1) if len(reach) == 3 else 1
            near = [
                min(max(p + s, 0), size - 1)
                for p, s, size in zip(position, shift, sizes, strict=True)
            ]
            out[(..., *position)] += weight * x[(..., *near)]
            weights += weight
        out[(..., *position)] /= weights
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 3, 4, 3, 5), (1, 2, 2, 1, 4), (1, 1, 1, 5, 2)]
)
def test_videos_equal_a_loop(mode, shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(Blur().double()(x, **MODES[mode]), naive_blur(x, mode))


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_and_gradgradcheck_of_the_blur(mode):
    torch.manual_seed(0)
    x = torch.randn(1, 1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    blur = Blur().double()
    assert torch.autograd.gradcheck(lambda x: blur(x, **MODES[mode]), (x,))
    # The second derivative of a linear map is zero; that of its square is not.
    assert torch.autograd.gradgradcheck(lambda x: blur(x, **MODES[mode]) ** 2, (x,))


def test_errors_of_the_blur():
    with pytest.raises(
        ValueError,
        match=r"`time_only` must be False if `space_only` is set, but got True.*Set neither",
    ):
        Blur()(torch.zeros(1, 1, 2, 2, 2), space_only=True, time_only=True)
    with pytest.raises(
        ValueError,
        match=r"`time_only` must be False for images, but got True for shape \(1, 1, 2, 2\)",
    ):
        Blur()(torch.zeros(1, 1, 2, 2), time_only=True)


# Convolutions


@pytest.mark.parametrize("time", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), ((3, 4, 4), (1, 2, 2)), ((3, 4, 4), 2)])
def test_conv3d_equals_pytorchs(time, kernel, stride):
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 3, kernel, stride, padding=1).double()
    other = nn.Conv3d(2, 3, kernel, stride, padding=1).double()
    x = torch.randn(2, 2, time, 6, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(padded_conv3d(x, conv, other.weight, other.bias), other(x))
    gradients = [
        torch.autograd.grad(y.square().sum(), [x, conv.weight, conv.bias])
        for y in (padded_conv3d(x, conv), conv(x))
    ]
    torch.testing.assert_close(*gradients)


def fill_memory_with_nan():
    """Fill the blocks that the allocator returns next with NaN."""
    blocks = [
        torch.full((size,), float("nan"))
        for size in (10**4, 10**5, 3 * 10**5, 10**6, 4 * 10**6) * 2
    ]
    del blocks


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiscriminatorBlock3D(16, 16),
        lambda: PatchDiscriminator3D(base_channels=16, num_temporal_layers=0),
    ],
)
def test_bfloat16_gradients_of_two_frames_equal_those_of_float32(make):
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
            gradients.append(
                torch.autograd.grad(logits.float().square().mean(), [x, *module.parameters()])
            )
        for ours, expected in zip(*gradients, strict=True):
            assert ours.isfinite().all()
            assert (ours - expected).norm() <= 0.3 * expected.norm() + 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_frame_in_bfloat16_equals_float32(channels):
    torch.manual_seed(0)
    conv, x = nn.Conv3d(channels, 16, 3, padding=1), torch.randn(2, channels, 1, 32, 32)
    for _ in range(3):
        fill_memory_with_nan()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            narrow = padded_conv3d(x, conv)
        torch.testing.assert_close(narrow.float(), conv(x), atol=0.05, rtol=0)


# Space to depth


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (2, 4, 6), (1, 1), (3, 4), (1, 2, 3), (3, 3, 3)])
def test_space_to_depth_equals_rearrangement_and_mixing_with_the_last_position_of_odd_axes_repeated(
    size,
):
    torch.manual_seed(0)
    layer = SpaceToDepthConv(2, dims=len(size)).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    even = x
    for axis in range(2, x.ndim):
        if x.shape[axis] % 2:
            even = torch.cat([even, even.narrow(axis, even.shape[axis] - 1, 1)], axis)
    if len(size) == 2:
        cells = rearrange(even, "b c (h p1) (w p2) -> b (c p1 p2) h w", p1=2, p2=2)
    else:
        cells = rearrange(
            even, "b c (t p1) (h p2) (w p3) -> b (c p1 p2 p3) t h w", p1=2, p2=2, p3=2
        )
    torch.testing.assert_close(layer(x), layer[1](cells))
