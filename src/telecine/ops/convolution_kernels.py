"""The fastest of PyTorch's kernels for convolutions on the CPU.

PyTorch (2.13 with oneDNN) is slow in float32 in two cases. It converts large feature maps to oneDNN's layout and back
around each kernel, unless they are channels-last. And it does not use oneDNN for a single small clip; the clip split
into temporal segments is a batch, for which it does.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# PyTorch's bound on the product of a single clip's first four sizes, up to which it does not use oneDNN.
SLOW_UP_TO = 20480
# With fewer positions per channel the weights dominate, and channels-last weights would have to be converted.
_MIN_POSITIONS_PER_CHANNEL = 64


class Geometry(NamedTuple):
    """The stride and the zero padding of a convolution along each axis."""

    stride: Sequence[int]
    padding: Sequence[int]

    def arguments(self) -> tuple[Any, ...]:
        """Return the last arguments of PyTorch's convolutions, which are neither dilated, transposed nor grouped."""
        axes = len(self.stride)
        return self.stride, self.padding, [1] * axes, False, [0] * axes, 1


def has_faster_kernel(x: Tensor) -> bool:
    """Return whether `fastest_convolution` chooses the kernel for `x`: float32 videos on a CPU with oneDNN."""
    onednn = torch.backends.mkldnn
    is_plain_video = x.ndim == 5 and x.device.type == "cpu" and x.dtype == torch.float32
    is_enabled = (
        onednn.is_available() and bool(onednn.enabled) and not torch.compiler.is_compiling()
    )
    return is_plain_video and is_enabled


def fastest_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Return the convolution of images or videos.

    Args:
        x: `(B, C, H, W)` or `(B, C, T, H, W)`.
        weight: `(C', C, ...)`.
        bias: `(C',)`, or None.
        geometry: Stride and padding.
    """
    if not has_faster_kernel(x):
        return torch.ops.aten.convolution(x, weight, bias, *geometry.arguments())
    segments = segments_of(x, weight, geometry)
    if segments is None:
        x = x.contiguous(memory_format=memory_layout(x, weight))
        return torch.ops.aten.convolution(x, weight, bias, *geometry.arguments())
    y = torch.ops.aten.convolution(segments.split(x), weight, bias, *segments.geometry.arguments())
    return segments.join_and_consume(y)


def fastest_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, output_mask: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias; the weight's is contiguous.

    Args:
        grad_output: The gradient of the convolution's output.
        x: Its input. If the weight needs no gradient, only its shape counts, where `has_faster_kernel`.
        weight: Its weight.
        geometry: Stride and padding.
        output_mask: Whether each of the three gradients is needed. One that is not is None.
    """
    if not has_faster_kernel(x):
        return _aten_convolution_backward(grad_output, x, weight, geometry, output_mask)
    segments = segments_of(x, weight, geometry)
    if segments is None:
        layout = memory_layout(x, weight)
        # Only the weight's gradient depends on the values of `x`. The system allocates no memory that is never touched.
        if output_mask[1]:
            x = x.contiguous(memory_format=layout)
        else:
            x = torch.empty_like(x, memory_format=layout)
        grad_output = grad_output.contiguous(memory_format=layout)
        grad_input, grad_weight, grad_bias = _aten_convolution_backward(
            grad_output, x, weight, geometry, output_mask
        )
    else:
        grad_input, grad_weight, grad_bias = _aten_convolution_backward(
            segments.split_output(grad_output),
            segments.split(x),
            weight,
            segments.geometry,
            output_mask,
        )
        if grad_input is not None:
            grad_input = segments.sum_gradients(grad_input, x.shape[2])
    if grad_weight is not None:
        grad_weight = grad_weight.contiguous()
    return grad_input, grad_weight, grad_bias


class Segments(NamedTuple):
    """How to split a single clip into a batch of temporal segments, each with the frames that its outputs depend on."""

    num_segments: int
    length: int  # frames that the outputs of a segment depend on
    step: int  # frames from the start of one segment to the start of the next
    padding: int  # frames of zeros before and after the clip
    layout: torch.memory_format
    geometry: Geometry  # of the convolution of segments, without temporal padding

    def split(self, x: Tensor) -> Tensor:
        """Map `(1, C, T, H, W)` to `(num_segments, C, length, H, W)`."""
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        segments = x[0].unfold(1, self.length, self.step).permute(1, 0, 4, 2, 3)
        return segments.contiguous(memory_format=self.layout)

    def join_and_consume(self, y: Tensor) -> Tensor:
        """Map `(num_segments, C, n, H, W)` to `(1, C, num_segments * n, H, W)`; `y` must not be used afterwards."""
        if self.layout == torch.contiguous_format:
            return torch.cat(y.split(1), dim=2)
        frames = y.permute(0, 2, 3, 4, 1).flatten(0, 1)[None].permute(0, 4, 1, 2, 3)
        # The same memory, but not a view: the next layer works in place, which autograd forbids on a view.
        return y.new_empty(0).set_(
            frames.untyped_storage(), frames.storage_offset(), frames.shape, frames.stride()
        )

    def split_output(self, y: Tensor) -> Tensor:
        """Undo `join_and_consume`."""
        segments = y[0].unflatten(1, (self.num_segments, -1)).transpose(0, 1)
        return segments.contiguous(memory_format=self.layout)

    def sum_gradients(self, segments: Tensor, num_frames: int) -> Tensor:
        """Map the gradients of segments to the gradient of the clip, `(1, C, num_frames, H, W)`."""
        frames = segments.permute(0, 2, 3, 4, 1)
        clip = frames.new_zeros(num_frames + 2 * self.padding, *frames.shape[2:])
        for index, segment in enumerate(frames):
            clip[index * self.step :][: self.length] += segment
        return clip[self.padding :][:num_frames][None].permute(0, 4, 1, 2, 3)


def segments_of(x: Tensor, weight: Tensor, geometry: Geometry) -> Segments | None:
    """Return how to split a clip, or None if its convolution is fast without.

    Args:
        x: `(B, C, T, H, W)`. It is split if B is 1, its size at most `SLOW_UP_TO`, and the output has several frames.
        weight: `(C', C, t, h, w)`.
        geometry: Stride and padding of the convolution.
    """
    batch, channels, num_frames, height, _ = x.shape
    stride, *strides = geometry.stride
    padding, *paddings = geometry.padding
    num_outputs = (num_frames + 2 * padding - weight.shape[2]) // stride + 1
    if batch != 1 or channels * num_frames * height > SLOW_UP_TO or num_outputs < 2:
        return None
    # Segments of one length: two halves, or of an odd number of outputs one output each.
    num_segments = 2 if num_outputs % 2 == 0 else num_outputs
    outputs_of_segment = num_outputs // num_segments
    return Segments(
        num_segments,
        length=(outputs_of_segment - 1) * stride + weight.shape[2],
        step=outputs_of_segment * stride,
        padding=padding,
        layout=memory_layout(x, weight),
        geometry=Geometry([stride, *strides], [0, *paddings]),
    )


def memory_layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the layout of `x` for which its convolution is fastest."""
    is_large = x.shape[0] * math.prod(x.shape[2:]) >= _MIN_POSITIONS_PER_CHANNEL * max(
        weight.shape[:2]
    )
    return torch.channels_last_3d if is_large else torch.contiguous_format


def _aten_convolution_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, output_mask: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    backward = torch.ops.aten.convolution_backward
    return backward(grad_output, x, weight, [weight.shape[0]], *geometry.arguments(), output_mask)
