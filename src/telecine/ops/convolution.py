"""Convolutions with a fast double backward for gradient penalties, and the fastest kernels on the CPU.

PyTorch computes the weight's part of a double backward as a convolution whose kernel is as large as the feature map,
which is slow everywhere. The weight's gradient in an ordinary backward is the same bilinear form, and libraries have a
fast kernel for it.

The layers of `discriminators/blocks.py` and `padded_conv3d` there call `convolve`, and with them the 3D convolutions of
all discriminators. 2D convolutions that are not of that file, and frozen backbones, call PyTorch's kernels.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from telecine.base.precision import autocast_dtype
from telecine.ops.convolution_kernels import (
    Geometry,
    fastest_backward,
    fastest_convolution,
    has_faster_kernel,
)
from telecine.ops.pass_options import pass_options


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the zero-padded convolution of images or videos, as `F.conv2d` and `F.conv3d` do.

    Inside `differentiated_twice`, and for float32 videos on the CPU, the double backward is fast and third derivatives
    are not available. Under autocast, in compiled code and elsewhere, this calls PyTorch's functions.

    Args:
        x: `(B, C, H, W)` or `(B, C, T, H, W)`.
        weight: `(C', C, ...)`.
        bias: `(C',)`, or None.
        stride: One number for each axis after the channels.
        padding: One number for each axis after the channels.
    """
    is_plain = autocast_dtype(x.device) is None and not torch.compiler.is_dynamo_compiling()
    if is_plain and (pass_options().is_differentiated_twice or has_faster_kernel(x)):
        # Views, because the engine does not report whether a leaf's gradient is needed.
        x = x.view_as(x)
        weight = weight.view_as(weight)
        if bias is not None:
            bias = bias.view_as(bias)
        return _Convolution.apply(x, weight, bias, Geometry(tuple(stride), tuple(padding)))
    convolution = F.conv2d if x.ndim == 4 else F.conv3d
    return convolution(x, weight, bias, tuple(stride), tuple(padding))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        # Only the weight's gradient depends on the values of `x`. With a frozen weight, the backward reads the shape
        # alone, so that one number is kept in place of all values.
        kept_x = x
        if has_faster_kernel(x) and not ctx.needs_input_grad[1]:
            kept_x = x.new_zeros(()).expand(x.shape)
        ctx.save_for_backward(kept_x, weight)
        ctx.geometry = geometry
        return fastest_convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradients = _ConvolutionBackward.apply(
            grad_output, x, weight, ctx.geometry, _output_mask(ctx)
        )
        return (*gradients, None)


def _output_mask(ctx: Any) -> list[bool]:
    """Return whether the present backward needs the gradients of input, weight and bias.

    A penalty, which differentiates with respect to an input, needs no gradients of weights, and the discriminator's
    step none of inputs. PyTorch's own operators know this; a Python function has to ask about the graph's next nodes.
    """
    output_mask = [False, False, False]
    # One node per tensor; a bias of None has none.
    for index, (node, _) in enumerate(ctx.next_functions):
        if ctx.needs_input_grad[index] and node is not None:
            output_mask[index] = torch._C._will_engine_execute_node(node)
    return output_mask


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        x: Tensor,
        weight: Tensor,
        geometry: Geometry,
        output_mask: list[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_output, x, weight)
        ctx.geometry = geometry
        return fastest_backward(grad_output, x, weight, geometry, output_mask)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_grad_input: Tensor | None,
        grad_grad_weight: Tensor | None,
        grad_grad_bias: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of `grad_output`, `x` and `weight`.

        The input's gradient is bilinear in the weight and `grad_output`, the weight's in `x` and `grad_output`.
        """
        grad_output, x, weight = ctx.saved_tensors
        geometry = ctx.geometry
        parts: list[Tensor] = []
        grad_input = None
        grad_weight = None
        if grad_grad_input is not None:
            parts.append(fastest_convolution(grad_grad_input, weight, None, geometry))
            grad_weight = fastest_backward(
                grad_output, grad_grad_input, weight, geometry, [False, True, False]
            )[1]
        if grad_grad_weight is not None:
            parts.append(fastest_convolution(x, grad_grad_weight, None, geometry))
            grad_input = fastest_backward(
                grad_output, x, grad_grad_weight, geometry, [True, False, False]
            )[0]
        if grad_grad_bias is not None:
            parts.append(grad_grad_bias.view(-1, *[1] * (x.ndim - 2)).expand_as(grad_output))
        grad_grad_output = reduce(torch.add, parts) if parts else None
        return grad_grad_output, grad_input, grad_weight, None, None
