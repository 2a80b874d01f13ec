"""Convolutions have PyTorch's values, gradients, and gradients of gradients, whichever kernel computes them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from telecine.losses import gradient_penalty
from telecine.ops.convolution import convolve
from telecine.ops.convolution_kernels import SLOW_UP_TO, Geometry, has_faster_kernel, segments_of
from telecine.ops.pass_options import differentiated_twice, pass_options

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="needs a PyTorch with oneDNN"
)

CUBE = {"stride": (1, 1, 1), "padding": (1, 1, 1)}
POINT = {"stride": (1, 1, 1), "padding": (0, 0, 0)}
HALVING = {"stride": (2, 2, 2), "padding": (0, 0, 0)}
FLAT = {"stride": (1, 2, 2), "padding": (0, 1, 1)}
IMAGE = ((2, 3, 6, 7), (4, 3, 3, 3), {"stride": (1, 1), "padding": (1, 1)})
# Of float32 clips: shape, kernel, stride and padding, number of temporal segments that the clip is split into.
CLIPS = [
    ((1, 4, 6, 7, 8), (5, 4, 3, 3, 3), CUBE, 2),
    ((1, 4, 5, 7, 8), (5, 4, 3, 3, 3), CUBE, 5),
    ((1, 3, 2, 12, 12), (1, 3, 3, 3, 3), CUBE, 2),
    ((1, 4, 8, 6, 6), (6, 4, 2, 2, 2), HALVING, 2),
    ((1, 4, 6, 6, 6), (6, 4, 1, 1, 1), HALVING, 3),
    ((1, 4, 4, 6, 6), (6, 4, 1, 3, 3), FLAT, 2),
    ((1, 2, 4, 24, 24), (3, 2, 3, 3, 3), CUBE, 2),  # large enough for channels last
    # With one channel a tensor has both layouts; the segments must still get the requested one.
    ((1, 1, 8, 16, 16), (8, 1, 1, 1, 1), POINT, 2),
    ((1, 1, 8, 32, 32), (6, 1, 2, 2, 2), HALVING, 2),
    ((1, 3, 8, 16, 16), (1, 3, 1, 1, 1), POINT, 2),
    ((1, 4, 1, 6, 6), (5, 4, 3, 3, 3), CUBE, None),  # one frame cannot be split
    ((2, 4, 4, 6, 6), (5, 4, 3, 3, 3), CUBE, None),
    ((2, 4, 4, 12, 12), (5, 4, 3, 3, 3), CUBE, None),  # large enough for channels last
    ((1, 9, 16, 144, 3), (2, 9, 3, 3, 3), CUBE, None),  # just above SLOW_UP_TO
    ((0, 4, 4, 6, 6), (5, 4, 3, 3, 3), CUBE, None),
]


@pytest.fixture
def twice():
    with differentiated_twice():
        yield
    assert not pass_options().is_differentiated_twice


def leaves(shape, kernel, with_bias=True, dtype=torch.float64):
    # A separate generator, because threads that share one would draw each other's numbers.
    generator = torch.Generator().manual_seed(0)
    shapes = [shape, kernel, kernel[:1]] if with_bias else [shape, kernel]
    return [
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in shapes
    ]


def theirs(x, weight, bias=None, *, stride, padding):
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, stride, padding)


@pytest.mark.parametrize(
    ("shape", "kernel", "geometry", "with_bias"),
    [
        (*IMAGE, True),
        ((3, 2, 8, 6), (3, 2, 2, 2), {"stride": (2, 2), "padding": (0, 0)}, False),
        ((2, 3, 4, 5, 6), (4, 3, 3, 3, 3), CUBE, False),
        ((1, 2, 4, 6, 6), (3, 2, 2, 2, 2), HALVING, True),
        ((2, 2, 3, 7, 7), (3, 2, 1, 3, 3), {"stride": (1, 2, 2), "padding": (0, 0, 0)}, True),
    ],
)
def test_gradients_of_both_orders(shape, kernel, geometry, with_bias, twice):
    inputs = leaves(shape, kernel, with_bias)

    def function(x, weight, bias=None):
        return convolve(x, weight, bias, **geometry)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    torch.testing.assert_close(function(*inputs), theirs(*inputs, **geometry))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("shape", "kernel", "geometry"), [case[:3] for case in CLIPS])
def test_clips_in_float32_and_an_activation_in_place(shape, kernel, geometry, with_bias, layout):
    results = []
    for dtype, convolution in ((torch.float32, convolve), (torch.float64, theirs)):
        x, weight, *bias = inputs = [
            (0.2 * leaf).detach().to(dtype) for leaf in leaves(shape, kernel, with_bias)
        ]
        for leaf in inputs:
            leaf.requires_grad_()
        y = convolution(x.contiguous(memory_format=layout), weight, *(bias or [None]), **geometry)
        y = F.leaky_relu(y, 0.1, inplace=True)
        (grad_x,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        gradients = torch.autograd.grad(grad_x.square().sum() + y.sin().sum(), inputs)
        results.append([y.detach(), grad_x.detach(), *gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3, check_dtype=False)
    assert results[0][3].is_contiguous(), "the weight's gradient"


@needs_onednn
@pytest.mark.parametrize(("shape", "kernel", "geometry", "num_segments"), CLIPS)
def test_single_small_clips_are_split(shape, kernel, geometry, num_segments):
    x, weight = leaves(shape, kernel, with_bias=False, dtype=torch.float32)
    segments = segments_of(x, weight, Geometry(**geometry))
    if num_segments is None:
        assert segments is None
    else:
        assert torch.Size(shape[:4]).numel() <= SLOW_UP_TO
        assert segments.num_segments == num_segments
        assert segments.split(x).is_contiguous(memory_format=segments.layout)


@needs_onednn
def test_inputs_without_a_faster_kernel():
    x = torch.zeros(1, 2, 4, 6, 6)
    assert has_faster_kernel(x)
    for other in (x.double(), x.bfloat16(), x[0], x.to("meta")):
        assert not has_faster_kernel(other)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not has_faster_kernel(x)


@needs_onednn
@pytest.mark.parametrize(
    ("shape", "kernel", "geometry"), [case[:3] for case in CLIPS[:1] + CLIPS[12:13]]
)
def test_a_frozen_weight_stores_no_input_and_the_default_dtype_has_no_effect(
    shape, kernel, geometry
):
    x, weight = leaves(shape, kernel, with_bias=False, dtype=torch.float32)
    gradients = []
    for trains, default in ((True, torch.float32), (False, torch.float32), (False, torch.float64)):
        torch.set_default_dtype(default)
        try:
            y = convolve(x, weight.requires_grad_(trains), None, **geometry)
            stored = {tensor.data_ptr() for tensor in y.grad_fn.saved_tensors}
            gradients += torch.autograd.grad(y.square().sum(), x)
        finally:
            torch.set_default_dtype(torch.float32)
        assert (x.data_ptr() in stored) == trains
    assert torch.equal(gradients[1], gradients[0])
    assert torch.equal(gradients[2], gradients[0])


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
    shape, kernel, geometry = IMAGE
    inputs = leaves(shape, kernel, with_bias)
    x, weight, *bias = inputs
    with ConvolutionCalls() as calls:
        y = convolve(x, weight, *(bias or [None]), **geometry).sum()
        for needed in ([x], [weight], inputs):
            torch.autograd.grad(y, needed, retain_graph=True)
        y.backward(retain_graph=True)
        y.backward(inputs=[x])
    everything = [True, True, with_bias]
    assert calls.masks == [
        [True, False, False],
        [False, True, False],
        everything,
        everything,
        [True, False, False],
    ]


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
        shape, kernel, geometry = IMAGE
        x, weight, bias = leaves(shape, kernel)
        with differentiated_twice():
            y = convolution(begin(x), weight, bias, **geometry).pow(2).flatten(1).sum(1)
        return torch.autograd.grad(gradient_penalty(real=x, logits=y), weight)[0]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(gradients, [convolve] * 2, [Meet.apply] * 2))
    torch.testing.assert_close(results, [gradients(theirs, torch.clone)] * 2)
    with ThreadPoolExecutor(1) as pool, differentiated_twice():
        assert not pool.submit(pass_options).result().is_differentiated_twice


def test_uses_pytorchs_function_elsewhere():
    shape, kernel, geometry = IMAGE
    x, weight, bias = leaves(shape, kernel)
    assert type(convolve(x, weight, bias, **geometry).grad_fn).__name__ == "ConvolutionBackward0"
    with differentiated_twice():
        assert (
            type(convolve(x, weight, bias, **geometry).grad_fn).__name__ != "ConvolutionBackward0"
        )
        with torch.autocast("cpu", torch.bfloat16):
            assert (
                convolve(x.float(), weight.float(), bias.float(), **geometry).dtype
                == torch.bfloat16
            )
        with torch.no_grad():
            assert not convolve(x, weight, bias, **geometry).requires_grad
        with differentiated_twice(False):
            assert not pass_options().is_differentiated_twice
        assert pass_options().is_differentiated_twice


def test_a_third_derivative_raises(twice):
    shape, kernel, geometry = IMAGE
    x, weight, bias = leaves(shape, kernel)
    y = convolve(x, weight, bias, **geometry).pow(4).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()
