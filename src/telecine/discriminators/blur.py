"""Low-pass filtering before a stride, so that down-sampling does not alias (Zhang, arXiv:1904.11486)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Blur(nn.Module):
    """Smooth space, time or both with the kernel [1, 2, 1] / 4 along each axis, edges replicated.

    The kernel is the buffer `f`, part of the state dict as in checkpoints of the reference.
    """

    f: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor, space_only: bool = False, time_only: bool = False) -> Tensor:
        """Blur `(B, C, H, W)` or `(B, C, T, H, W)`; the shape stays.

        Raises:
            ValueError: If both flags are set, or `time_only` is asked of images.
        """
        if space_only and time_only:
            raise ValueError("`space_only` and `time_only` must not both be set. Set neither to blur space and time.")
        if time_only and x.ndim != 5:
            raise ValueError(f"`time_only` must come with a video (B, C, T, H, W), but got shape {tuple(x.shape)}.")
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
