"""Convolutions of videos by the quickest of PyTorch's kernels: on the CPU, its own choice can be several times slower.

Two things cost it time in float32 (PyTorch 2.13 with oneDNN). Large maps are brought from its layout to oneDNN's and
back around every kernel, unless their channels lie last. And a single clip of few values goes to kernels that do not
use oneDNN; cut into pieces of time, which are a batch then, it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# PyTorch's own bound on the product of a single clip's first four sizes, up to which it does not use oneDNN.
SLOW_UP_TO = 20480
# Below as many positions for each channel the weights are what costs, and they would have to be laid out anew.
MIN_POSITIONS_PER_CHANNEL = 64


class Geometry(NamedTuple):
    """Stride and padding of a convolution by axis."""

    stride: Sequence[int]
    padding: Sequence[int]


def has_quicker(x: Tensor) -> bool:
    """Say whether this is for `convolution` to choose: a video in float32 on a CPU with oneDNN."""
    onednn = torch.backends.mkldnn
    is_plain_video = x.ndim == 5 and x.device.type == "cpu" and x.dtype == torch.float32
    return is_plain_video and onednn.is_available() and bool(onednn.enabled)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution of images or videos with zeros around them."""
    if not has_quicker(x):
        return _convolution(x, weight, bias, geometry)
    pieces = _pieces_of(x, weight, geometry)
    if pieces is None:
        return _convolution(x.contiguous(memory_format=_layout(x, weight)), weight, bias, geometry)
    return pieces.joined(_convolution(pieces.cut(x), weight, bias, pieces.geometry))


def convolution_backward(
    of_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias, None for what is not needed; the weight's is contiguous.

    The values of `x` do not matter unless the weight's is needed.
    """
    if not has_quicker(x):
        return _convolution_backward(of_output, x, weight, geometry, needed)
    pieces = _pieces_of(x, weight, geometry)
    if pieces is None:
        layout = _layout(x, weight)
        x = x.contiguous(memory_format=layout) if needed[1] else _blank(x.shape, layout)
        of_output = of_output.contiguous(memory_format=layout)
        of_x, of_weight, of_bias = _convolution_backward(of_output, x, weight, geometry, needed)
    else:
        cut = pieces.cut(x) if needed[1] else pieces.blank(x)
        of_pieces, of_weight, of_bias = _convolution_backward(
            pieces.cut_output(of_output), cut, weight, pieces.geometry, needed
        )
        of_x = None if of_pieces is None else pieces.added_up(of_pieces, x.shape[2])
    return of_x, None if of_weight is None else of_weight.contiguous(), of_bias


class _Pieces(NamedTuple):
    """A single clip as a batch of pieces of time, each with the frames around it that its outputs depend on."""

    number: int
    length: int
    step: int
    """From the start of a piece to that of the next, in frames."""
    padding: int
    """Frames of zeros before and after the clip."""
    layout: torch.memory_format
    geometry: Geometry
    """Of the convolution of pieces: no padding of time."""

    def cut(self, x: Tensor) -> Tensor:
        """Map `(1, C, T, H, W)` to `(number, C, length, H, W)`."""
        padded = F.pad(x, (0, 0, 0, 0, self.padding, self.padding)) if self.padding else x
        pieces = padded[0].unfold(1, self.length, self.step).permute(1, 0, 4, 2, 3)
        return pieces.contiguous(memory_format=self.layout)

    def blank(self, x: Tensor) -> Tensor:
        """Return a tensor like `cut(x)`, where values do not matter."""
        return _blank((self.number, x.shape[1], self.length, *x.shape[3:]), self.layout)

    def joined(self, y: Tensor) -> Tensor:
        """Map `(number, C, n, H, W)` to `(1, C, number * n, H, W)`; `y` must not be used any more."""
        if self.layout == torch.contiguous_format:
            return torch.cat(y.split(1), dim=2)
        frames = y.permute(0, 2, 3, 4, 1).flatten(0, 1)[None].permute(0, 4, 1, 2, 3)
        # The same memory and no view of it: what follows works in place, which autograd forbids on a view.
        return y.new_empty(0).set_(frames.untyped_storage(), frames.storage_offset(), frames.shape, frames.stride())

    def cut_output(self, y: Tensor) -> Tensor:
        """Undo `joined`."""
        return y[0].unflatten(1, (self.number, -1)).transpose(0, 1).contiguous(memory_format=self.layout)

    def added_up(self, pieces: Tensor, num_frames: int) -> Tensor:
        """Map gradients of pieces to that of the clip, `(1, C, num_frames, H, W)`."""
        frames = pieces.permute(0, 2, 3, 4, 1)
        clip = frames.new_zeros(num_frames + 2 * self.padding, *frames.shape[2:])
        for number, piece in enumerate(frames):
            clip[number * self.step :][: self.length] += piece
        return clip[self.padding :][:num_frames][None].permute(0, 4, 1, 2, 3)


def _pieces_of(x: Tensor, weight: Tensor, geometry: Geometry) -> _Pieces | None:
    """Return how to cut `x`, or None where it is quick as it is or has one frame of output alone."""
    batch, channels, num_frames, height, _ = x.shape
    (stride, *strides), (padding, *paddings) = geometry
    num_outputs = (num_frames + 2 * padding - weight.shape[2]) // stride + 1
    if batch != 1 or channels * num_frames * height > SLOW_UP_TO or num_outputs < 2:
        return None
    number = num_outputs if num_outputs % 2 else 2
    outputs = num_outputs // number
    length = (outputs - 1) * stride + weight.shape[2]
    return _Pieces(
        number, length, outputs * stride, padding, _layout(x, weight), Geometry([stride, *strides], [0, *paddings])
    )


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return how `x` is best laid out."""
    positions = x.shape[0] * math.prod(x.shape[2:])
    is_large = positions >= MIN_POSITIONS_PER_CHANNEL * max(weight.shape[:2])
    return torch.channels_last_3d if is_large else torch.contiguous_format


def _blank(shape: Sequence[int], layout: torch.memory_format) -> Tensor:
    """Return a tensor that says how an input was laid out; memory that is never touched is not taken."""
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=layout)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    ones, zeros = [1] * (x.ndim - 2), [0] * (x.ndim - 2)
    return torch.ops.aten.convolution(x, weight, bias, geometry.stride, geometry.padding, ones, False, zeros, 1)


def _convolution_backward(
    of_output: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    ones, zeros, channels = [1] * (x.ndim - 2), [0] * (x.ndim - 2), [weight.shape[0]]
    return torch.ops.aten.convolution_backward(
        of_output, x, weight, channels, geometry.stride, geometry.padding, ones, False, zeros, 1, needed
    )
