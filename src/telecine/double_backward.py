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

    Inside `differentiated_twice` gradients of its gradients are quick, and gradients of those are not there. Under
    autocast, in compiled code, and outside, it is PyTorch's own.
    """
    if _twice and autocast_dtype(x.device) is None and not torch.compiler.is_compiling():
        return _Convolution.apply(x, weight, bias, list(stride), list(padding))
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, tuple(stride), tuple(padding))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return _forward(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        needed = [of_x, of_weight and not _inputs_only, of_bias and not _inputs_only]
        return (*_ConvolutionBackward.apply(of_output, x, weight, ctx.stride, ctx.padding, needed), None, None)


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        of_output: Tensor,
        x: Tensor,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        needed: list[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(of_output, x, weight)
        ctx.stride, ctx.padding = stride, padding
        return _backward(of_output, x, weight, stride, padding, needed)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_of_x: Tensor | None, by_of_weight: Tensor | None, by_of_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Differentiate the gradients: that of `x` is bilinear in weight and `of_output`, that of the weight in `x` and
        `of_output`, that of the bias a sum over `of_output`.
        """
        of_output, x, weight = ctx.saved_tensors
        geometry = ctx.stride, ctx.padding
        by_output, by_x, by_weight = None, None, None
        if by_of_x is not None:
            by_output = _forward(by_of_x, weight, None, *geometry)
            by_weight = _backward(of_output, by_of_x, weight, *geometry, [False, True, False])[1]
        if by_of_weight is not None:
            part = _forward(x, by_of_weight, None, *geometry)
            by_output = part if by_output is None else by_output + part
            by_x = _backward(of_output, x, by_of_weight, *geometry, [True, False, False])[0]
        if by_of_bias is not None:
            part = by_of_bias.view(-1, *[1] * (x.ndim - 2)).expand_as(of_output)
            by_output = part if by_output is None else by_output + part
        return by_output, by_x, by_weight, None, None, None


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    ones, zeros = [1] * len(stride), [0] * len(stride)
    return torch.ops.aten.convolution(x, weight, bias, stride, padding, ones, False, zeros, 1)


def _backward(
    of_output: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], needed: list[bool]
) -> tuple[Tensor | None, ...]:
    ones, zeros, channels = [1] * len(stride), [0] * len(stride), [weight.shape[0]]
    return torch.ops.aten.convolution_backward(
        of_output, x, weight, channels, stride, padding, ones, False, zeros, 1, needed
    )
