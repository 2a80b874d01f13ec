"""The convolution: PyTorch's values, gradients, and gradients of gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from telecine.double_backward import _Convolution, convolve, differentiated_twice, inputs_only, is_twice

CASES = [
    ((2, 3, 6, 7), (4, 3, 3, 3), (1, 1), (1, 1)),
    ((3, 2, 8, 6), (3, 2, 2, 2), (2, 2), (0, 0)),
    ((2, 3, 4, 5, 6), (4, 3, 3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((1, 2, 4, 6, 6), (3, 2, 2, 2, 2), (2, 2, 2), (0, 0, 0)),
    ((2, 2, 3, 7, 7), (3, 2, 1, 3, 3), (1, 2, 2), (0, 0, 0)),
]


@pytest.fixture
def twice():
    with differentiated_twice():
        yield
    assert not is_twice()


def made(case, with_bias=True):
    torch.manual_seed(0)
    shape, kernel, stride, padding = case
    x, weight = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (shape, kernel))
    bias = torch.randn(kernel[0], dtype=torch.float64, requires_grad=True) if with_bias else None
    return x, weight, bias, stride, padding


def theirs(x, weight, bias, *, stride, padding):
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, stride, padding)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_both_orders(case, with_bias, twice):
    x, weight, bias, stride, padding = made(case, with_bias)
    inputs = (x, weight, bias) if with_bias else (x, weight)

    def function(x, weight, bias=None):
        return convolve(x, weight, bias, stride=stride, padding=padding)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    torch.testing.assert_close(function(*inputs), theirs(x, weight, bias, stride=stride, padding=padding))


@pytest.mark.parametrize("case", CASES)
def test_a_penalty_has_pytorchs_gradients(case, twice):
    results = []
    for convolution in (convolve, theirs):
        x, weight, bias, stride, padding = made(case)
        y = F.leaky_relu(convolution(x, weight, bias, stride=stride, padding=padding), 0.1).sin().sum()
        with inputs_only():
            (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum() + y, [x, weight, bias]))
    torch.testing.assert_close(*results)


def test_weights_are_left_out_where_only_inputs_are_asked_for(twice):
    x, weight, bias, stride, padding = made(CASES[0])
    y = convolve(x, weight, bias, stride=stride, padding=padding).sum()
    with pytest.raises(RuntimeError, match="appears to not have been used"), inputs_only():
        torch.autograd.grad(y, weight, retain_graph=True)
    assert torch.autograd.grad(y, weight)[0].abs().max() > 0, "and back again afterwards"


def test_it_is_pytorchs_own_elsewhere():
    x, weight, bias, stride, padding = made(CASES[0])
    options = {"stride": stride, "padding": padding}
    assert type(convolve(x, weight, bias, **options).grad_fn).__name__ == "ConvolutionBackward0"
    with differentiated_twice():
        assert type(convolve(x, weight, bias, **options).grad_fn).__name__ == _Convolution.__name__ + "Backward"
        with torch.autocast("cpu", torch.bfloat16):
            assert convolve(x.float(), weight.float(), bias.float(), **options).dtype == torch.bfloat16
        with torch.no_grad():
            assert not convolve(x, weight, bias, **options).requires_grad
        with differentiated_twice(False):
            assert not is_twice()
        assert is_twice()


def test_a_third_derivative_is_refused(twice):
    x, weight, bias, stride, padding = made(CASES[0])
    y = convolve(x, weight, bias, stride=stride, padding=padding).pow(4).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_an_activation_may_work_in_place_behind_it(twice):
    x, weight, bias, stride, padding = made(CASES[2])
    y = nn.LeakyReLU(0.1, inplace=True)(convolve(x, weight, bias, stride=stride, padding=padding))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    expected = F.leaky_relu(theirs(x, weight, bias, stride=stride, padding=padding), 0.1).square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])


@pytest.mark.parametrize("case", [CASES[2], ((2, 3, 4, 20, 20), (4, 3, 3, 3, 3), (1, 1, 1), (1, 1, 1)), CASES[3]])
def test_videos_in_float32_have_the_same_gradients_of_both_orders(case):
    """They take the CPU's quick ways, inside `differentiated_twice` and outside."""
    results = []
    for dtype, convolution in ((torch.float32, convolve), (torch.float64, theirs)):
        x, weight, bias, stride, padding = made(case)
        leaves = [(0.2 * leaf.detach()).to(dtype).requires_grad_() for leaf in (x, weight, bias)]
        y = F.leaky_relu(convolution(*leaves, stride=stride, padding=padding), 0.1).sin().sum()
        (gradient,) = torch.autograd.grad(y, leaves[0], create_graph=True)
        results.append([g.double() for g in torch.autograd.grad(gradient.square().sum() + y, leaves)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def test_a_frozen_weight_keeps_no_input():
    x, weight, bias, stride, padding = (
        v.float().detach() if isinstance(v, torch.Tensor) else v for v in made(CASES[2])
    )
    for trains in (False, True):
        y = convolve(x.requires_grad_(), weight.requires_grad_(trains), bias, stride=stride, padding=padding)
        kept = {saved.data_ptr() for saved in y.grad_fn.saved_tensors}
        assert (x.data_ptr() in kept) == trains
