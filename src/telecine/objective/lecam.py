"""LeCam regularisation with its averages: kept for each discriminator, saved with the loss, equal on every rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from telecine.losses import lecam
from telecine.objective.averages import RunningMean
from telecine.objective.balance import Reduce
from telecine.shapes import Scalar


class LeCam(nn.Module):
    """LeCam's distance of the logits to the running means of the other side's (Tseng et al., arXiv:2104.03310).

    Args:
        decay: Decay of the running means.
        reduce: Averages a tensor over ranks.
    """

    def __init__(self, decay: float, reduce: Reduce) -> None:
        super().__init__()
        self.reduce = reduce
        self.real = RunningMean(decay)
        self.fake = RunningMean(decay)

    def forward(self, *, real: Tensor, fake: Tensor) -> Scalar:
        """Return the regulariser of a batch of logits; in training, the means take the batch in first."""
        if self.training and torch.is_grad_enabled():
            means = self.reduce(torch.stack([real.detach().float().mean(), fake.detach().float().mean()]))
            self.real.update(means[0])
            self.fake.update(means[1])
        return lecam(real=real, fake=fake, real_average=self.real(), fake_average=self.fake())
