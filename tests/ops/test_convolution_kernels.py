"""3D convolutions on the CPU equal PyTorch's, whichever kernel computes them."""

import pytest
import torch
from torch.nn import functional as F

from telecine.ops.convolution_kernels import (
    SLOW_UP_TO,
    Geometry,
    fastest_backward,
    fastest_convolution,
    has_faster_kernel,
    memory_layout,
    segments_of,
)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a PyTorch with oneDNN")

CUBE = Geometry((1, 1, 1), (1, 1, 1))
HALVING = Geometry((2, 2, 2), (0, 0, 0))
FLAT = Geometry((1, 2, 2), (0, 1, 1))
# Clip, kernel, geometry, number of temporal segments.
SPLIT = [
    ((1, 4, 6, 7, 8), (5, 4, 3, 3, 3), CUBE, 2),
    ((1, 4, 5, 7, 8), (5, 4, 3, 3, 3), CUBE, 5),
    ((1, 3, 2, 12, 12), (1, 3, 3, 3, 3), CUBE, 2),
    ((1, 4, 8, 6, 6), (6, 4, 2, 2, 2), HALVING, 2),
    ((1, 4, 6, 6, 6), (6, 4, 1, 1, 1), HALVING, 3),
    ((1, 4, 4, 6, 6), (6, 4, 1, 3, 3), FLAT, 2),
    ((1, 2, 4, 24, 24), (3, 2, 3, 3, 3), CUBE, 2),  # large enough for channels last
    # With one channel a tensor has both layouts; the segments must still get the requested one.
    ((1, 1, 8, 16, 16), (8, 1, 1, 1, 1), Geometry((1, 1, 1), (0, 0, 0)), 2),
    ((1, 1, 8, 32, 32), (6, 1, 2, 2, 2), HALVING, 2),
    ((1, 3, 8, 16, 16), (1, 3, 1, 1, 1), Geometry((1, 1, 1), (0, 0, 0)), 2),
]
WHOLE = [
    ((1, 4, 1, 6, 6), (5, 4, 3, 3, 3), CUBE),  # one frame cannot be split
    ((2, 4, 4, 6, 6), (5, 4, 3, 3, 3), CUBE),
    ((2, 4, 4, 12, 12), (5, 4, 3, 3, 3), CUBE),  # large enough
    ((1, 9, 16, 144, 3), (2, 9, 3, 3, 3), CUBE),  # just above SLOW_UP_TO
    ((0, 4, 4, 6, 6), (5, 4, 3, 3, 3), CUBE),  # no clip
]
CASES = [case[:3] for case in SPLIT] + WHOLE


def make(shape, kernel, with_bias=True):
    torch.manual_seed(0)
    bias = torch.randn(kernel[0]) if with_bias else None
    return torch.randn(shape), torch.randn(kernel), bias


def theirs(x, weight, bias, geometry):
    return F.conv3d(x.double(), weight.double(), None if bias is None else bias.double(), *geometry).float()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("shape", "kernel", "geometry"), CASES)
def test_values_and_gradients(shape, kernel, geometry, with_bias, layout):
    x, weight, bias = make(shape, kernel, with_bias)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias) if leaf is not None]
    expected = theirs(x, weight, bias, geometry)
    grad_output = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, leaves, grad_output)
    with torch.no_grad():
        laid_out = x.contiguous(memory_format=layout)
        torch.testing.assert_close(
            fastest_convolution(laid_out, weight, bias, geometry), expected, rtol=1e-4, atol=1e-4
        )
        found = fastest_backward(grad_output, laid_out, weight, geometry, [True, True, with_bias])
    torch.testing.assert_close(found[: len(gradients)], gradients, rtol=1e-4, atol=2e-3)
    assert found[1].is_contiguous()


@pytest.mark.parametrize(("shape", "kernel", "geometry"), CASES)
def test_the_gradient_of_the_input_does_not_depend_on_its_values(shape, kernel, geometry):
    x, weight, _ = make(shape, kernel)
    grad_output = torch.randn_like(fastest_convolution(x, weight, None, geometry))
    output_mask = [True, False, False]
    expected, *others = fastest_backward(grad_output, x, weight, geometry, output_mask)
    empty = x.new_zeros(()).expand(x.shape)
    found = fastest_backward(grad_output, empty, weight, geometry, output_mask)
    assert others == [None, None]
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize(("shape", "kernel", "geometry", "num_segments"), SPLIT)
def test_a_single_clip_is_split(shape, kernel, geometry, num_segments):
    x, weight, _ = make(shape, kernel)
    segments = segments_of(x, weight, geometry)
    assert segments.num_segments == num_segments
    split = segments.split(x)
    assert split.shape[0] == num_segments
    assert split.is_contiguous(memory_format=segments.layout)
    y = fastest_convolution(x, weight, None, geometry)
    assert not y._is_view(), "an activation could not overwrite a view"
    assert torch.equal(segments.join(segments.split_output(y)), y)


def test_which_clips_are_split_and_which_become_channels_last():
    assert [segments_of(*make(*case[:2])[:2], case[2]) for case in WHOLE] == [None] * 5
    assert SLOW_UP_TO < 9 * 16 * 144
    layouts = [memory_layout(*make(*case[:2])[:2]) for case in WHOLE]
    assert layouts == [torch.contiguous_format] * 2 + [torch.channels_last_3d] * 2 + [torch.contiguous_format]
    assert memory_layout(*make(*SPLIT[-1][:2])[:2]) == torch.channels_last_3d


def test_inputs_without_a_faster_kernel():
    x = torch.zeros(1, 2, 4, 6, 6)
    assert has_faster_kernel(x)
    assert not has_faster_kernel(x.double())
    assert not has_faster_kernel(x.bfloat16())
    assert not has_faster_kernel(x[0])
    assert not has_faster_kernel(x.to("meta"))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not has_faster_kernel(x)


def test_the_default_dtype_has_no_effect():
    x, weight, _ = make(*SPLIT[0][:2])
    output_mask = [True, False, False]
    for clips in (x, torch.cat([x, x])):
        grad_output = torch.ones_like(fastest_convolution(clips, weight, None, CUBE))
        expected = fastest_backward(grad_output, clips, weight, CUBE, output_mask)[0]
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(fastest_backward(grad_output, clips, weight, CUBE, output_mask)[0], expected)
        finally:
            torch.set_default_dtype(torch.float32)
