"""Convolutions with the fastest of PyTorch's kernels on the CPU, and a fast double backward for gradient penalties.

PyTorch (2.13 with oneDNN) is slow in float32 in two cases. It converts large feature maps to oneDNN's layout and back
around each kernel, unless they are channels-last. And it does not use oneDNN for a single small clip; the clip split
into temporal segments is a batch, for which it does. It also computes the weight's part of a double backward as a
convolution whose kernel is as large as the feature map, which is slow everywhere. The weight's gradient in an ordinary
backward is the same bilinear form, and libraries have a fast kernel for it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from telecine.base.precision import autocast_dtype

# PyTorch's bound on the product of a single clip's first four sizes, up to which it does not use oneDNN.
_SLOW_UP_TO = 20480
# With fewer positions per channel the weights dominate, and channels-last weights would have to be converted.
_MIN_POSITIONS_PER_CHANNEL = 64
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
    is_plain = autocast_dtype(x.device) is None and not torch.compiler.is_dynamo_compiling()
    if is_plain and (is_differentiated_twice() or _has_faster_kernel(x)):
        # Views, because the engine does not report whether a leaf's gradient is needed.
        inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in (x, weight, bias)]
        return _Convolution.apply(*inputs, _Geometry(tuple(stride), tuple(padding)))
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, tuple(stride), tuple(padding))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: "_Geometry") -> Tensor:
        # Only the weight's gradient depends on the values of `x`, and a frozen weight needs none.
        needs_values = ctx.needs_input_grad[1] or not _has_faster_kernel(x)
        ctx.save_for_backward(x if needs_values else x.new_zeros(()).expand(x.shape), weight)
        ctx.geometry = geometry
        return _fastest_convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (*_ConvolutionBackward.apply(grad_output, x, weight, ctx.geometry, _output_mask(ctx)), None)


def _output_mask(ctx: Any) -> list[bool]:
    """Return whether the present backward needs the gradients of input, weight and bias.

    A penalty, which differentiates with respect to an input, needs no gradients of weights, and the discriminator's
    step none of inputs. PyTorch's own operators know this; a Python function has to ask about the graph's next nodes.
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
        ctx: Any, grad_output: Tensor, x: Tensor, weight: Tensor, geometry: "_Geometry", output_mask: list[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_output, x, weight)
        ctx.geometry = geometry
        return _fastest_backward(grad_output, x, weight, geometry, output_mask)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_grad_input: Tensor | None, grad_grad_weight: Tensor | None, grad_grad_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of `grad_output`, `x` and `weight`.

        The input's gradient is bilinear in the weight and `grad_output`, the weight's in `x` and `grad_output`.
        """
        grad_output, x, weight = ctx.saved_tensors
        parts: list[Tensor] = []
        grad_input, grad_weight, geometry = None, None, ctx.geometry
        if grad_grad_input is not None:
            parts.append(_fastest_convolution(grad_grad_input, weight, None, geometry))
            grad_weight = _fastest_backward(grad_output, grad_grad_input, weight, geometry, [False, True, False])[1]
        if grad_grad_weight is not None:
            parts.append(_fastest_convolution(x, grad_grad_weight, None, geometry))
            grad_input = _fastest_backward(grad_output, x, grad_grad_weight, geometry, [True, False, False])[0]
        if grad_grad_bias is not None:
            parts.append(grad_grad_bias.view(-1, *[1] * (x.ndim - 2)).expand_as(grad_output))
        return reduce(torch.add, parts) if parts else None, grad_input, grad_weight, None, None


class _Geometry(NamedTuple):
    stride: Sequence[int]
    padding: Sequence[int]

    def arguments(self) -> tuple[Any, ...]:
        """Return the last arguments of PyTorch's convolutions, which are neither dilated, transposed nor grouped."""
        axes = len(self.stride)
        return self.stride, self.padding, [1] * axes, False, [0] * axes, 1


def _has_faster_kernel(x: Tensor) -> bool:
    """Return whether `_fastest_convolution` chooses the kernel for `x`: float32 videos on a CPU with oneDNN."""
    onednn = torch.backends.mkldnn
    is_plain_video = x.ndim == 5 and x.device.type == "cpu" and x.dtype == torch.float32
    is_enabled = onednn.is_available() and bool(onednn.enabled) and not torch.compiler.is_compiling()
    return is_plain_video and is_enabled


def _fastest_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    if not _has_faster_kernel(x):
        return torch.ops.aten.convolution(x, weight, bias, *geometry.arguments())
    segments = _segments(x, weight, geometry)
    if segments is None:
        x = x.contiguous(memory_format=_layout(x, weight))
        return torch.ops.aten.convolution(x, weight, bias, *geometry.arguments())
    return segments.join(torch.ops.aten.convolution(segments.split(x), weight, bias, *segments.geometry.arguments()))


def _fastest_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, output_mask: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias, None where `output_mask` is False; the weight's is contiguous."""
    if not _has_faster_kernel(x):
        return _aten_convolution_backward(grad_output, x, weight, geometry, output_mask)
    segments = _segments(x, weight, geometry)
    if segments is None:
        layout = _layout(x, weight)
        # Only the weight's gradient depends on the values of `x`. The system allocates no memory that is never touched.
        x = x.contiguous(memory_format=layout) if output_mask[1] else torch.empty_like(x, memory_format=layout)
        grad_output = grad_output.contiguous(memory_format=layout)
        grad_input, grad_weight, grad_bias = _aten_convolution_backward(grad_output, x, weight, geometry, output_mask)
    else:
        grad_segments, grad_weight, grad_bias = _aten_convolution_backward(
            segments.split_output(grad_output), segments.split(x), weight, segments.geometry, output_mask
        )
        grad_input = None if grad_segments is None else segments.sum_gradients(grad_segments, x.shape[2])
    return grad_input, None if grad_weight is None else grad_weight.contiguous(), grad_bias


class _Segments(NamedTuple):
    """How to split a single clip into a batch of temporal segments, each with the frames that its outputs depend on."""

    num_segments: int
    length: int
    step: int  # frames from the start of one segment to the start of the next
    padding: int  # frames of zeros before and after the clip
    layout: torch.memory_format
    geometry: _Geometry  # that of the convolution of segments, without temporal padding

    def split(self, x: Tensor) -> Tensor:
        """Map `(1, C, T, H, W)` to `(num_segments, C, length, H, W)`."""
        padded = F.pad(x, (0, 0, 0, 0, self.padding, self.padding)) if self.padding else x
        return padded[0].unfold(1, self.length, self.step).permute(1, 0, 4, 2, 3).contiguous(memory_format=self.layout)

    def join(self, y: Tensor) -> Tensor:
        """Map `(num_segments, C, n, H, W)` to `(1, C, num_segments * n, H, W)`; `y` must not be used afterwards."""
        if self.layout == torch.contiguous_format:
            return torch.cat(y.split(1), dim=2)
        frames = y.permute(0, 2, 3, 4, 1).flatten(0, 1)[None].permute(0, 4, 1, 2, 3)
        # The same memory, but not a view: the next layer works in place, which autograd forbids on a view.
        return y.new_empty(0).set_(frames.untyped_storage(), frames.storage_offset(), frames.shape, frames.stride())

    def split_output(self, y: Tensor) -> Tensor:
        """Undo `join`."""
        return y[0].unflatten(1, (self.num_segments, -1)).transpose(0, 1).contiguous(memory_format=self.layout)

    def sum_gradients(self, segments: Tensor, num_frames: int) -> Tensor:
        """Map the gradients of segments to that of the clip, `(1, C, num_frames, H, W)`."""
        frames = segments.permute(0, 2, 3, 4, 1)
        clip = frames.new_zeros(num_frames + 2 * self.padding, *frames.shape[2:])
        for index, segment in enumerate(frames):
            clip[index * self.step :][: self.length] += segment
        return clip[self.padding :][:num_frames][None].permute(0, 4, 1, 2, 3)


def _segments(x: Tensor, weight: Tensor, geometry: _Geometry) -> _Segments | None:
    """Return how to split `x`, or None if it is fast as it is or has only one frame of output."""
    batch, channels, num_frames, height, _ = x.shape
    (stride, *strides), (padding, *paddings) = geometry
    num_outputs = (num_frames + 2 * padding - weight.shape[2]) // stride + 1
    if batch != 1 or channels * num_frames * height > _SLOW_UP_TO or num_outputs < 2:
        return None
    num_segments = num_outputs if num_outputs % 2 else 2
    step = num_outputs // num_segments * stride
    length, without_padding = step - stride + weight.shape[2], _Geometry([stride, *strides], [0, *paddings])
    return _Segments(num_segments, length, step, padding, _layout(x, weight), without_padding)


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    is_large = x.shape[0] * math.prod(x.shape[2:]) >= _MIN_POSITIONS_PER_CHANNEL * max(weight.shape[:2])
    return torch.channels_last_3d if is_large else torch.contiguous_format


def _aten_convolution_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, output_mask: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    backward = torch.ops.aten.convolution_backward
    return backward(grad_output, x, weight, [weight.shape[0]], *geometry.arguments(), output_mask)
