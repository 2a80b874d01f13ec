"""Running averages that are saved with the loss and are the same on every rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from telecine.shapes import Scalar


class RunningMean(nn.Module):
    """The mean of the values seen so far, newer ones weighing more: `m <- decay * m + (1 - decay) * value`.

    The first value is taken as it is and the early ones are averaged evenly until the decay takes over, so there is
    no pull towards the initial zero. A value that is not finite is passed over. Nothing waits for the device.

    Args:
        decay: From 0 (the newest value alone) to below 1.
    """

    mean: Tensor
    num_values: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("num_values", torch.zeros(()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningMean:
        """Move with the module, but stay in float32: half precision would round small updates away."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, moved in self._buffers.items():
            if moved is not None and moved.dtype not in (torch.float32, torch.float64):
                self._buffers[name] = kept[name].to(moved.device)  # type: ignore[union-attr]
        return self

    @torch.no_grad()
    def update(self, value: Scalar) -> None:
        """Take a value in."""
        value = value.detach().to(self.mean.dtype)
        is_finite = torch.isfinite(value)
        self.num_values += is_finite
        share = (1 / self.num_values.clamp(min=1)).clamp(min=1 - self.decay)
        self.mean.lerp_(torch.where(is_finite, value, self.mean), share)

    def forward(self) -> Scalar:
        """Return the mean, as a tensor of its own; 0 before the first value."""
        return self.mean.clone()
