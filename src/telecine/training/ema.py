"""The moving average of the autoencoder's weights, which is what gets evaluated and shipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of `model` whose weights follow it with `decay` at every `update_parameters(model)`.

    Early on the decay is smaller, `(1 + n) / (10 + n)` after `n` updates, so that the initial weights are soon
    forgotten. With `decay` 0 the copy equals the model. Buffers are copied.
    """

    @torch.no_grad()
    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        num = int(num_averaged)  # waits for an accelerator, once an update
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + num) / (10 + num)))

    return AveragedModel(model, multi_avg_fn=average, use_buffers=False)
