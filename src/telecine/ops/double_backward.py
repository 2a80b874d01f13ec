"""Convolutions with a fast double backward, as a gradient penalty needs it.

PyTorch computes the weight's part of a double backward as a convolution whose kernel is as large as the feature map.
Libraries have no fast kernel for that. It is the same bilinear form as the weight's gradient in an ordinary backward,
for which they have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.autograd.graph import Node
from torch.nn import functional as F

from telecine.base.precision import autocast_dtype
from telecine.ops.convolution_kernels import Geometry, convolution, convolution_backward, has_faster_kernel

# Per thread: another thread may differentiate its discriminators once at the same time.
_differentiated_twice: ContextVar[bool] = ContextVar("differentiated_twice", default=False)


@contextmanager
def differentiated_twice(on: bool = True) -> Iterator[None]:
    """Prepare the convolutions inside for a fast double backward; an ordinary backward becomes a few percent slower."""
    before = _differentiated_twice.set(on)
    try:
        yield
    finally:
        _differentiated_twice.reset(before)


def is_differentiated_twice() -> bool:
    """Return whether the caller is inside `differentiated_twice`."""
    return _differentiated_twice.get()


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the zero-padded convolution of images or videos, as `F.conv2d` and `F.conv3d` do.

    Inside `differentiated_twice`, and for float32 videos on the CPU, the double backward is fast and third derivatives
    are not available. Under autocast, in compiled code and elsewhere, this calls PyTorch's functions.
    """
    is_plain = autocast_dtype(x.device) is None and not torch.compiler.is_compiling()
    if is_plain and (is_differentiated_twice() or has_faster_kernel(x)):
        # Views, because the engine does not report whether a leaf's gradient is needed.
        inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in (x, weight, bias)]
        return _Convolution.apply(*inputs, Geometry(tuple(stride), tuple(padding)))
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, tuple(stride), tuple(padding))


class _Context(FunctionCtx):
    """The attributes of a context that the functions below use."""

    geometry: Geometry
    needs_input_grad: tuple[bool, ...]
    next_functions: tuple[tuple[Node | None, int], ...]
    saved_tensors: tuple[Tensor, ...]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        # Only the weight's gradient depends on the values of `x`, and a frozen weight needs none.
        needs_values = ctx.needs_input_grad[1] or not has_faster_kernel(x)
        ctx.save_for_backward(x if needs_values else x.new_zeros(()).expand(x.shape), weight)
        ctx.geometry = geometry
        return convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: _Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (*_ConvolutionBackward.apply(grad_output, x, weight, ctx.geometry, _output_mask(ctx)), None)


def _output_mask(ctx: _Context) -> list[bool]:
    """Return whether the present backward needs the gradients of input, weight and bias.

    `torch.autograd.grad` with respect to an input alone, as a penalty calls it, does not need the weights' gradients,
    and the discriminator's step does not need those of the real videos, which a penalty differentiates with respect to.
    PyTorch's own operators know this; a function written in Python has to ask about the next nodes of the graph.
    """
    nodes = [node for node, _ in ctx.next_functions]  # one per tensor: a bias of None has no node
    nodes += [None] * (3 - len(nodes))
    return [
        needs and node is not None and torch._C._will_engine_execute_node(node)
        for needs, node in zip(ctx.needs_input_grad[:3], nodes, strict=True)
    ]


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, grad_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, output_mask: list[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_output, x, weight)
        ctx.geometry = geometry
        return convolution_backward(grad_output, x, weight, geometry, output_mask)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _Context, grad_grad_input: Tensor | None, grad_grad_weight: Tensor | None, grad_grad_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of `grad_output`, `x` and `weight`.

        The input's gradient is bilinear in the weight and `grad_output`, the weight's in `x` and `grad_output`, and the
        bias' is a sum over `grad_output`.
        """
        grad_output, x, weight = ctx.saved_tensors
        grad_grad_output, grad_input, grad_weight = None, None, None
        if grad_grad_input is not None:
            grad_grad_output = convolution(grad_grad_input, weight, None, ctx.geometry)
            mask = [False, True, False]
            grad_weight = convolution_backward(grad_output, grad_grad_input, weight, ctx.geometry, mask)[1]
        if grad_grad_weight is not None:
            part = convolution(x, grad_grad_weight, None, ctx.geometry)
            grad_grad_output = part if grad_grad_output is None else grad_grad_output + part
            mask = [True, False, False]
            grad_input = convolution_backward(grad_output, x, grad_grad_weight, ctx.geometry, mask)[0]
        if grad_grad_bias is not None:
            part = grad_grad_bias.view(-1, *[1] * (x.ndim - 2)).expand_as(grad_output)
            grad_grad_output = part if grad_grad_output is None else grad_grad_output + part
        return grad_grad_output, grad_input, grad_weight, None, None
