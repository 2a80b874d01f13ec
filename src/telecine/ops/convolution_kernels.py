"""3D convolutions on the CPU with the fastest of PyTorch's kernels; PyTorch's own choice can be several times slower.

PyTorch (2.13 with oneDNN) is slow in float32 in two cases. It converts large feature maps to oneDNN's layout and back
around each kernel, unless they are channels-last. And it does not use oneDNN for a single small clip; the clip split
into temporal segments is a batch, for which it does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# PyTorch's bound on the product of a single clip's first four sizes, up to which it does not use oneDNN.
SLOW_UP_TO = 20480
# With fewer positions per channel the weights dominate, and channels-last weights would have to be converted.
MIN_POSITIONS_PER_CHANNEL = 64


class Geometry(NamedTuple):
    """Stride and padding of a convolution, one value per axis."""

    stride: Sequence[int]
    padding: Sequence[int]


def has_faster_kernel(x: Tensor) -> bool:
    """Return whether `convolution` chooses the kernel for `x`: float32 videos on a CPU with oneDNN."""
    onednn = torch.backends.mkldnn
    is_plain_video = x.ndim == 5 and x.device.type == "cpu" and x.dtype == torch.float32
    return is_plain_video and onednn.is_available() and bool(onednn.enabled)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the zero-padded convolution of images or videos."""
    if not has_faster_kernel(x):
        return _convolution(x, weight, bias, geometry)
    segments = _segments(x, weight, geometry)
    if segments is None:
        return _convolution(x.contiguous(memory_format=_layout(x, weight)), weight, bias, geometry)
    return segments.join(_convolution(segments.split(x), weight, bias, segments.geometry))


def convolution_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, output_mask: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias, None where `output_mask` is False; the weight's is contiguous.

    The values of `x` are used only for the gradient of the weight.
    """
    if not has_faster_kernel(x):
        return _convolution_backward(grad_output, x, weight, geometry, output_mask)
    segments = _segments(x, weight, geometry)
    if segments is None:
        layout = _layout(x, weight)
        x = x.contiguous(memory_format=layout) if output_mask[1] else _empty(x.shape, layout)
        grad_output = grad_output.contiguous(memory_format=layout)
        grad_input, grad_weight, grad_bias = _convolution_backward(grad_output, x, weight, geometry, output_mask)
    else:
        grad_segments, grad_weight, grad_bias = _convolution_backward(
            segments.split_output(grad_output),
            segments.split(x) if output_mask[1] else segments.empty(x),
            weight,
            segments.geometry,
            output_mask,
        )
        grad_input = None if grad_segments is None else segments.sum_gradients(grad_segments, x.shape[2])
    return grad_input, None if grad_weight is None else grad_weight.contiguous(), grad_bias


class _Segments(NamedTuple):
    """How to split a single clip into a batch of temporal segments, each with the frames that its outputs depend on."""

    num_segments: int
    length: int
    step: int
    """Frames from the start of one segment to the start of the next."""
    padding: int
    """Frames of zeros before and after the clip."""
    layout: torch.memory_format
    geometry: Geometry
    """Geometry of the convolution of segments, without temporal padding."""

    def split(self, x: Tensor) -> Tensor:
        """Map `(1, C, T, H, W)` to `(num_segments, C, length, H, W)`."""
        padded = F.pad(x, (0, 0, 0, 0, self.padding, self.padding)) if self.padding else x
        segments = padded[0].unfold(1, self.length, self.step).permute(1, 0, 4, 2, 3)
        return segments.contiguous(memory_format=self.layout)

    def empty(self, x: Tensor) -> Tensor:
        """Return a tensor like `split(x)` with arbitrary values."""
        return _empty((self.num_segments, x.shape[1], self.length, *x.shape[3:]), self.layout)

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


def _segments(x: Tensor, weight: Tensor, geometry: Geometry) -> _Segments | None:
    """Return how to split `x`, or None if it is fast as it is or has only one frame of output."""
    batch, channels, num_frames, height, _ = x.shape
    (stride, *strides), (padding, *paddings) = geometry
    num_outputs = (num_frames + 2 * padding - weight.shape[2]) // stride + 1
    if batch != 1 or channels * num_frames * height > SLOW_UP_TO or num_outputs < 2:
        return None
    num_segments = num_outputs if num_outputs % 2 else 2
    outputs = num_outputs // num_segments
    length = (outputs - 1) * stride + weight.shape[2]
    segment_geometry = Geometry([stride, *strides], [0, *paddings])
    return _Segments(num_segments, length, outputs * stride, padding, _layout(x, weight), segment_geometry)


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the fastest memory format for `x`."""
    positions = x.shape[0] * math.prod(x.shape[2:])
    is_large = positions >= MIN_POSITIONS_PER_CHANNEL * max(weight.shape[:2])
    return torch.channels_last_3d if is_large else torch.contiguous_format


def _empty(shape: Sequence[int], layout: torch.memory_format) -> Tensor:
    """Return a tensor that only tells a kernel the layout; the system allocates no memory that is never touched."""
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=layout)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
    return torch.ops.aten.convolution(x, weight, bias, geometry.stride, geometry.padding, ones, False, zeros, 1)


def _convolution_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, output_mask: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    ones, zeros, channels = [1] * (x.ndim - 2), [0] * (x.ndim - 2), [weight.shape[0]]
    return torch.ops.aten.convolution_backward(
        grad_output, x, weight, channels, geometry.stride, geometry.padding, ones, False, zeros, 1, output_mask
    )
