"""Convolutions whose gradient is differentiated again, as a gradient penalty does.

PyTorch takes the weight's part of a double backward as a convolution with a kernel as large as the feature map, for
which libraries have no fast path. It is the same bilinear form as the weight's gradient in an ordinary backward, for
which they have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from telecine.convolution_kernels import Geometry, convolution, convolution_backward, has_quicker
from telecine.precision import autocast_dtype

# Not of a thread: on an accelerator, a backward runs in a thread of its own.
_twice = False
_inputs_only = False


@contextmanager
def differentiated_twice(on: bool = True) -> Iterator[None]:
    """Let `convolve` inside make ready for a double backward, which costs an ordinary one a few per cent."""
    global _twice
    before, _twice = _twice, on
    try:
        yield
    finally:
        _twice = before


@contextmanager
def inputs_only() -> Iterator[None]:
    """Leave the weights' gradients out of every backward inside, of what was made ready by `differentiated_twice`.

    For `torch.autograd.grad` by an input with `create_graph=True`: PyTorch's own operators see that the weights'
    gradients are not asked for, functions written in Python do not.
    """
    global _inputs_only
    before, _inputs_only = _inputs_only, True
    try:
        yield
    finally:
        _inputs_only = before


def is_twice() -> bool:
    """Say whether this is inside `differentiated_twice`."""
    return _twice


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the convolution of images or videos with zeros around them, as `F.conv2d` and `F.conv3d` do.

    Inside `differentiated_twice`, and for videos in float32 on the CPU, gradients of its gradients are quick, and
    gradients of those are not there. Under autocast, in compiled code, and elsewhere, it is PyTorch's own.
    """
    is_plain = autocast_dtype(x.device) is None and not torch.compiler.is_compiling()
    if is_plain and (_twice or has_quicker(x)):
        return _Convolution.apply(x, weight, bias, Geometry(tuple(stride), tuple(padding)))
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, tuple(stride), tuple(padding))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        # A frozen weight's gradient is not asked for, and nothing else depends on the values of `x`.
        needs_values = ctx.needs_input_grad[1] or not has_quicker(x)
        ctx.save_for_backward(x if needs_values else x.new_zeros(()).expand(x.shape), weight)
        ctx.geometry = geometry
        return convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        needed = [of_x, of_weight and not _inputs_only, of_bias and not _inputs_only]
        return (*_ConvolutionBackward.apply(of_output, x, weight, ctx.geometry, needed), None)


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, of_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needed: list[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(of_output, x, weight)
        ctx.geometry = geometry
        return convolution_backward(of_output, x, weight, geometry, needed)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_of_x: Tensor | None, by_of_weight: Tensor | None, by_of_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Differentiate the gradients: that of `x` is bilinear in weight and `of_output`, that of the weight in `x` and
        `of_output`, that of the bias a sum over `of_output`.
        """
        of_output, x, weight = ctx.saved_tensors
        by_output, by_x, by_weight = None, None, None
        if by_of_x is not None:
            by_output = convolution(by_of_x, weight, None, ctx.geometry)
            by_weight = convolution_backward(of_output, by_of_x, weight, ctx.geometry, [False, True, False])[1]
        if by_of_weight is not None:
            part = convolution(x, by_of_weight, None, ctx.geometry)
            by_output = part if by_output is None else by_output + part
            by_x = convolution_backward(of_output, x, by_of_weight, ctx.geometry, [True, False, False])[0]
        if by_of_bias is not None:
            part = by_of_bias.view(-1, *[1] * (x.ndim - 2)).expand_as(of_output)
            by_output = part if by_output is None else by_output + part
        return by_output, by_x, by_weight, None, None
