"""The discriminators' convolutions: quick where their gradients are differentiated, right where a kernel is not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.ops.double_backward import convolve
from telecine.precision import autocast_dtype


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with zeros around it, whose double backward is quick."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` as `nn.Conv2d` does."""
        height, width = (int(size) for size in self.padding)
        return convolve(x, self.weight, self.bias, stride=self.stride, padding=(height, width))


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` with zeros around it whose gradients can be trusted in bfloat16 on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` as `nn.Conv3d` does."""
        return padded_conv3d(x, self)


def padded_conv3d(x: Tensor, conv: nn.Conv3d, weight: Tensor | None = None) -> Tensor:
    """Return `conv(x)`, with another weight if one is given.

    With two frames and padding in time, the backward of oneDNN's bfloat16 kernel reads memory that nobody wrote
    (PyTorch 2.13, AVX-512 BF16): gradients come out as whatever lay there, often NaN. Two frames that are padded
    before are four, and those are computed right.
    """
    time, height, width = (int(size) for size in conv.padding)
    is_bfloat16 = torch.bfloat16 in (x.dtype, autocast_dtype(x.device))
    if x.shape[2] == 2 and time > 0 and x.device.type == "cpu" and is_bfloat16:
        x, time = F.pad(x, (0, 0, 0, 0, time, time)), 0
    weight = conv.weight if weight is None else weight
    return convolve(x, weight, conv.bias, stride=conv.stride, padding=(time, height, width))
