"""The convolution has PyTorch's values, gradients, and gradients of gradients."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from telecine.losses import gradient_penalty
from telecine.ops.convolution import convolve, differentiated_twice, is_differentiated_twice

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
    assert not is_differentiated_twice()


def make(case, with_bias=True):
    # A separate generator, because threads that share one would draw each other's numbers.
    options = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64, "requires_grad": True}
    shape, kernel, stride, padding = case
    x, weight = (torch.randn(size, **options) for size in (shape, kernel))
    bias = torch.randn(kernel[0], **options) if with_bias else None
    return x, weight, bias, stride, padding


def theirs(x, weight, bias, *, stride, padding):
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, stride, padding)


@pytest.mark.parametrize(
    ("case", "with_bias"),
    list(zip(CASES, (True, False, False, True, True), strict=True)),
)
def test_gradients_of_both_orders(case, with_bias, twice):
    x, weight, bias, stride, padding = make(case, with_bias)
    inputs = (x, weight, bias) if with_bias else (x, weight)

    def function(x, weight, bias=None):
        return convolve(x, weight, bias, stride=stride, padding=padding)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    torch.testing.assert_close(function(*inputs), theirs(x, weight, bias, stride=stride, padding=padding))


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_a_penalty_equal_pytorchs(case, twice):
    results = []
    for convolution in (convolve, theirs):
        x, weight, bias, stride, padding = make(case)
        y = F.leaky_relu(convolution(x, weight, bias, stride=stride, padding=padding), 0.1).sin().sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum() + y, [x, weight, bias]))
    torch.testing.assert_close(*results)


class ConvolutionCalls(TorchDispatchMode):
    """Records which gradients each backward of a convolution computes."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.masks.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_that_are_not_needed_are_not_computed(with_bias, twice):
    x, weight, bias, stride, padding = make(CASES[0], with_bias)
    leaves = [x, weight, bias] if with_bias else [x, weight]
    with ConvolutionCalls() as calls:
        y = convolve(x, weight, bias, stride=stride, padding=padding).sum()
        for inputs in ([x], [weight], leaves):
            torch.autograd.grad(y, inputs, retain_graph=True)
        y.backward(retain_graph=True)
        y.backward(inputs=[x])
    everything = [True, True, with_bias]
    assert calls.masks == [[True, False, False], [False, True, False], everything, everything, [True, False, False]]


def test_threads_are_independent():
    """Two penalties at the same time, as replicas of a model in threads compute them."""
    started = threading.Barrier(2, timeout=60)

    class Meet(torch.autograd.Function):
        """The identity; its backward waits for that of the other thread."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            started.wait()
            return gradient

    def gradients(convolution, begin):
        x, weight, bias, stride, padding = make(CASES[0])
        with differentiated_twice():
            y = convolution(begin(x), weight, bias, stride=stride, padding=padding).pow(2).flatten(1).sum(1)
        return torch.autograd.grad(gradient_penalty(real=x, logits=y), [weight])[0]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(gradients, [convolve] * 2, [Meet.apply] * 2))
    torch.testing.assert_close(found, [gradients(theirs, torch.clone)] * 2)
    assert not is_differentiated_twice()
    torch.testing.assert_close(gradients(convolve, torch.clone), found[0])


def test_the_context_is_per_thread():
    with ThreadPoolExecutor(1) as pool, differentiated_twice():
        assert is_differentiated_twice()
        assert not pool.submit(is_differentiated_twice).result()


def test_uses_pytorchs_function_elsewhere():
    x, weight, bias, stride, padding = make(CASES[0])
    options = {"stride": stride, "padding": padding}
    assert type(convolve(x, weight, bias, **options).grad_fn).__name__ == "ConvolutionBackward0"
    with differentiated_twice():
        assert type(convolve(x, weight, bias, **options).grad_fn).__name__ != "ConvolutionBackward0"
        with torch.autocast("cpu", torch.bfloat16):
            assert convolve(x.float(), weight.float(), bias.float(), **options).dtype == torch.bfloat16
        with torch.no_grad():
            assert not convolve(x, weight, bias, **options).requires_grad
        with differentiated_twice(False):
            assert not is_differentiated_twice()
        assert is_differentiated_twice()


def test_a_third_derivative_raises(twice):
    x, weight, bias, stride, padding = make(CASES[0])
    y = convolve(x, weight, bias, stride=stride, padding=padding).pow(4).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_an_in_place_activation_may_follow(twice):
    x, weight, bias, stride, padding = make(CASES[2])
    y = nn.LeakyReLU(0.1, inplace=True)(convolve(x, weight, bias, stride=stride, padding=padding))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    expected = F.leaky_relu(theirs(x, weight, bias, stride=stride, padding=padding), 0.1).square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0])


@pytest.mark.parametrize("case", [CASES[2], ((2, 3, 4, 20, 20), (4, 3, 3, 3, 3), (1, 1, 1), (1, 1, 1)), CASES[3]])
def test_videos_in_float32_have_the_same_gradients_of_both_orders(case):
    """They use the faster kernels inside `differentiated_twice` and outside."""
    results = []
    for dtype, convolution in ((torch.float32, convolve), (torch.float64, theirs)):
        x, weight, bias, stride, padding = make(case)
        leaves = [(0.2 * leaf.detach()).to(dtype).requires_grad_() for leaf in (x, weight, bias)]
        y = F.leaky_relu(convolution(*leaves, stride=stride, padding=padding), 0.1).sin().sum()
        (gradient,) = torch.autograd.grad(y, leaves[0], create_graph=True)
        results.append([g.double() for g in torch.autograd.grad(gradient.square().sum() + y, leaves)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def test_a_frozen_weight_stores_no_input():
    x, weight, bias, stride, padding = (
        v.float().detach() if isinstance(v, torch.Tensor) else v for v in make(CASES[2])
    )
    for trains in (False, True):
        y = convolve(x.requires_grad_(), weight.requires_grad_(trains), bias, stride=stride, padding=padding)
        stored = {saved.data_ptr() for saved in y.grad_fn.saved_tensors}
        assert (x.data_ptr() in stored) == trains
