"""Convolutions whose gradient is differentiated again, as a gradient penalty does.

PyTorch takes the weight's part of a double backward as a convolution with a kernel as large as the feature map, for
which libraries have no fast path. It is the same bilinear form as the weight's gradient in an ordinary backward, for
which they have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from telecine.ops.convolution_kernels import Geometry, convolution, convolution_backward, has_quicker
from telecine.precision import autocast_dtype

# Of a thread: another one's discriminators may be differentiated once at the same time.
_twice: ContextVar[bool] = ContextVar("twice", default=False)


@contextmanager
def differentiated_twice(on: bool = True) -> Iterator[None]:
    """Let `convolve` inside make ready for a double backward, which costs an ordinary one a few per cent."""
    before = _twice.set(on)
    try:
        yield
    finally:
        _twice.reset(before)


def is_twice() -> bool:
    """Say whether this is inside `differentiated_twice`."""
    return _twice.get()


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the convolution of images or videos with zeros around them, as `F.conv2d` and `F.conv3d` do.

    Inside `differentiated_twice`, and for videos in float32 on the CPU, gradients of its gradients are quick, and
    gradients of those are not there. Under autocast, in compiled code, and elsewhere, it is PyTorch's own.
    """
    is_plain = autocast_dtype(x.device) is None and not torch.compiler.is_compiling()
    if is_plain and (_twice.get() or has_quicker(x)):
        # Views, because the engine does not say of a parameter itself whether its gradient is asked for.
        parameters = weight.view_as(weight), None if bias is None else bias.view_as(bias)
        return _Convolution.apply(x, *parameters, Geometry(tuple(stride), tuple(padding)))
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
        return (*_ConvolutionBackward.apply(of_output, x, weight, ctx.geometry, _asked_for(ctx)), None)


def _asked_for(ctx: Any) -> list[bool]:
    """Say of input, weight and bias whether this backward goes on with their gradients.

    `torch.autograd.grad` by an input alone, as a penalty calls it, has no use for the weights'. PyTorch's own operators
    know; of functions written in Python, the next nodes of the graph do.
    """
    of_x, *of_parameters = ctx.needs_input_grad[:3]
    nodes = [node for node, _ in ctx.next_functions[1:]]  # of tensors: there is none for a bias of None
    nodes += [None] * (len(of_parameters) - len(nodes))
    needed = [
        needs and torch._C._will_engine_execute_node(node) for needs, node in zip(of_parameters, nodes, strict=True)
    ]
    return [of_x, *needed]


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
