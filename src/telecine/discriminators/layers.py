"""The layers of the discriminators' blocks: convolutions, blur, space-to-depth down-sampling, activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telecine.base.checks import argument_error
from telecine.base.precision import autocast_dtype
from telecine.ops.double_backward import convolve


def leaky_relu() -> nn.Module:
    """Return the discriminators' activation; in place, because the convolution before it does not need its output."""
    return nn.LeakyReLU(0.1, inplace=True)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with zero padding and a fast double backward."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` as `nn.Conv2d` does."""
        height, width = (int(size) for size in self.padding)
        return convolve(x, self.weight, self.bias, stride=self.stride, padding=(height, width))


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` with zero padding, a fast double backward, and correct gradients in bfloat16 on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, T, H, W)` as `nn.Conv3d` does."""
        return padded_conv3d(x, self)


def padded_conv3d(x: Tensor, conv: nn.Conv3d, weight: Tensor | None = None) -> Tensor:
    """Return `conv(x)`, with `weight` instead of the convolution's own if it is given.

    With two frames and temporal padding, the backward of oneDNN's bfloat16 kernel reads uninitialised memory (PyTorch
    2.13, AVX-512 BF16), and gradients are arbitrary, often NaN. Two frames that are padded beforehand are four, for
    which the kernel is correct.
    """
    time, height, width = (int(size) for size in conv.padding)
    is_bfloat16 = torch.bfloat16 in (x.dtype, autocast_dtype(x.device))
    if x.shape[2] == 2 and time > 0 and x.device.type == "cpu" and is_bfloat16:
        x, time = F.pad(x, (0, 0, 0, 0, time, time)), 0
    weight = conv.weight if weight is None else weight
    return convolve(x, weight, conv.bias, stride=conv.stride, padding=(time, height, width))


class Blur(nn.Module):
    """Blur space, time or both with the kernel [1, 2, 1] / 4 along each axis, edges replicated.

    A low-pass filter before a stride prevents aliasing (Zhang, arXiv:1904.11486). The kernel is the buffer `f`, which
    is part of the state dict as in the reference's checkpoints.
    """

    f: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor, space_only: bool = False, time_only: bool = False) -> Tensor:
        """Blur `(B, C, H, W)` or `(B, C, T, H, W)`; the shape stays the same.

        Raises:
            ValueError: If both flags are set, or `time_only` is set for images.
        """
        if space_only and time_only:
            remedy = "Set neither to blur space and time."
            raise argument_error("time_only", "False if `space_only` is set", time_only, remedy)
        if time_only and x.ndim != 5:
            remedy = "Only videos (B, C, T, H, W) have a time axis."
            raise argument_error("time_only", "False for images", f"True for shape {tuple(x.shape)}", remedy)
        time = [-3] if x.ndim == 5 and not space_only else []
        space = [] if time_only else [-2, -1]
        for dim in time + space:
            x = self._along(x, dim)
        return x

    def _along(self, x: Tensor, dim: int) -> Tensor:
        size = x.shape[dim]
        padded = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, size - 1, 1)], dim)
        taps = (self.f / self.f.sum()).to(x.dtype)
        before, here, after = (padded.narrow(dim, shift, size) for shift in range(3))
        return taps[0] * before + taps[1] * here + taps[2] * after


class SpaceToDepthConv(nn.Sequential):
    """Halve every spatial (or space-time) axis: move each 2 x 2 (x 2) cell into channels, then mix them linearly.

    Both steps together are one convolution of kernel 2 and stride 2. The weight has the shape of the 1x1 convolution
    that follows the rearrangement in published checkpoints (child 1), and is viewed as the larger kernel. Odd axes are
    extended by their last row, column or frame, so that `n` becomes `ceil(n / 2)`.
    """

    def __init__(self, channels: int, dims: int) -> None:
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        super().__init__(nn.Identity(), conv(channels * 2**dims, channels, 1))
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, n...)` to `(B, C, ceil(n / 2)...)`."""
        conv = self[1]
        assert isinstance(conv, nn.Conv2d | nn.Conv3d)
        kernel = conv.weight.view(x.shape[1], x.shape[1], *(2,) * self.dims)
        return convolve(_to_even(x, self.dims), kernel, conv.bias, stride=[2] * self.dims, padding=[0] * self.dims)


def _to_even(x: Tensor, dims: int) -> Tensor:
    odd = [size % 2 for size in x.shape[-dims:]]
    if not any(odd):
        return x
    padding = [amount for size in reversed(odd) for amount in (0, size)]
    return F.pad(x, padding, mode="replicate")
