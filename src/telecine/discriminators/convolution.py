"""3D convolution that pads time, around a fault of the CPU's bfloat16 kernel."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


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
    if x.shape[2] == 2 and time > 0 and x.device.type == "cpu":
        x, time = F.pad(x, (0, 0, 0, 0, time, time)), 0
    return F.conv3d(x, conv.weight if weight is None else weight, conv.bias, conv.stride, (time, height, width))
