"""Convolutions of videos on the CPU: PyTorch's figures by whichever way they are computed."""

import pytest
import torch
from torch.nn import functional as F

from telecine.ops.convolution_kernels import (
    SLOW_UP_TO,
    Geometry,
    _layout,
    _pieces_of,
    convolution,
    convolution_backward,
    has_quicker,
)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a PyTorch with oneDNN")

CUBE = Geometry((1, 1, 1), (1, 1, 1))
HALVING = Geometry((2, 2, 2), (0, 0, 0))
FLAT = Geometry((1, 2, 2), (0, 1, 1))
# Clips, kernel, geometry, and into how many pieces of time a clip is cut.
PIECES = [
    ((1, 4, 6, 7, 8), (5, 4, 3, 3, 3), CUBE, 2),
    ((1, 4, 5, 7, 8), (5, 4, 3, 3, 3), CUBE, 5),
    ((1, 3, 2, 12, 12), (1, 3, 3, 3, 3), CUBE, 2),
    ((1, 4, 8, 6, 6), (6, 4, 2, 2, 2), HALVING, 2),
    ((1, 4, 6, 6, 6), (6, 4, 1, 1, 1), HALVING, 3),
    ((1, 4, 4, 6, 6), (6, 4, 1, 3, 3), FLAT, 2),
    ((1, 2, 4, 24, 24), (3, 2, 3, 3, 3), CUBE, 2),  # large enough for channels last
    # One channel, whose layout nobody can tell, in pieces that are laid out as asked before they are cut.
    ((1, 1, 8, 16, 16), (8, 1, 1, 1, 1), Geometry((1, 1, 1), (0, 0, 0)), 2),
    ((1, 1, 8, 32, 32), (6, 1, 2, 2, 2), HALVING, 2),
    ((1, 3, 8, 16, 16), (1, 3, 1, 1, 1), Geometry((1, 1, 1), (0, 0, 0)), 2),
]
WHOLE = [
    ((1, 4, 1, 6, 6), (5, 4, 3, 3, 3), CUBE),  # one frame: nothing to cut
    ((2, 4, 4, 6, 6), (5, 4, 3, 3, 3), CUBE),
    ((2, 4, 4, 12, 12), (5, 4, 3, 3, 3), CUBE),  # large enough
    ((1, 9, 16, 144, 3), (2, 9, 3, 3, 3), CUBE),  # just above what oneDNN is not asked for
    ((0, 4, 4, 6, 6), (5, 4, 3, 3, 3), CUBE),  # no clip at all
]
CASES = [case[:3] for case in PIECES] + WHOLE


def made(shape, kernel, with_bias=True):
    torch.manual_seed(0)
    bias = torch.randn(kernel[0]) if with_bias else None
    return torch.randn(shape), torch.randn(kernel), bias


def theirs(x, weight, bias, geometry):
    return F.conv3d(x.double(), weight.double(), None if bias is None else bias.double(), *geometry).float()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("shape", "kernel", "geometry"), CASES)
def test_values_and_gradients(shape, kernel, geometry, with_bias, layout):
    x, weight, bias = made(shape, kernel, with_bias)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias) if leaf is not None]
    expected = theirs(x, weight, bias, geometry)
    of_output = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, leaves, of_output)
    with torch.no_grad():
        laid_out = x.contiguous(memory_format=layout)
        torch.testing.assert_close(convolution(laid_out, weight, bias, geometry), expected, rtol=1e-4, atol=1e-4)
        found = convolution_backward(of_output, laid_out, weight, geometry, [True, True, with_bias])
    torch.testing.assert_close(found[: len(gradients)], gradients, rtol=1e-4, atol=2e-3)
    assert found[1].is_contiguous()


@pytest.mark.parametrize(("shape", "kernel", "geometry"), CASES)
def test_the_inputs_values_do_not_matter_where_the_weight_is_frozen(shape, kernel, geometry):
    x, weight, _ = made(shape, kernel)
    of_output = torch.randn_like(convolution(x, weight, None, geometry))
    needed = [True, False, False]
    expected, *others = convolution_backward(of_output, x, weight, geometry, needed)
    hollow = x.new_zeros(()).expand(x.shape)
    found = convolution_backward(of_output, hollow, weight, geometry, needed)
    assert others == [None, None]
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize(("shape", "kernel", "geometry", "number"), PIECES)
def test_a_single_clip_is_cut(shape, kernel, geometry, number):
    x, weight, _ = made(shape, kernel)
    pieces = _pieces_of(x, weight, geometry)
    assert pieces.number == number
    cut = pieces.cut(x)
    assert cut.shape[0] == number
    assert pieces.blank(x).shape == cut.shape
    assert all(tensor.is_contiguous(memory_format=pieces.layout) for tensor in (cut, pieces.blank(x)))
    y = convolution(x, weight, None, geometry)
    assert not y._is_view(), "which an activation could not overwrite"
    assert torch.equal(pieces.joined(pieces.cut_output(y)), y)


def test_which_clips_are_cut_and_which_are_laid_out_anew():
    assert [_pieces_of(*made(*case[:2])[:2], case[2]) for case in WHOLE] == [None] * 5
    assert SLOW_UP_TO < 9 * 16 * 144
    layouts = [_layout(*made(*case[:2])[:2]) for case in WHOLE]
    assert layouts == [torch.contiguous_format] * 2 + [torch.channels_last_3d] * 2 + [torch.contiguous_format]
    assert _layout(*made(*PIECES[-1][:2])[:2]) == torch.channels_last_3d


def test_what_is_left_to_pytorch():
    x = torch.zeros(1, 2, 4, 6, 6)
    assert has_quicker(x)
    assert not has_quicker(x.double())
    assert not has_quicker(x.bfloat16())
    assert not has_quicker(x[0])
    assert not has_quicker(x.to("meta"))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not has_quicker(x)


def test_defaults_of_the_process_do_not_matter():
    x, weight, _ = made(*PIECES[0][:2])
    needed = [True, False, False]
    for clips in (x, torch.cat([x, x])):
        of_output = torch.ones_like(convolution(clips, weight, None, CUBE))
        expected = convolution_backward(of_output, clips, weight, CUBE, needed)[0]
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(convolution_backward(of_output, clips, weight, CUBE, needed)[0], expected)
        finally:
            torch.set_default_dtype(torch.float32)
