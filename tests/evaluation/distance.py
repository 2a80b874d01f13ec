"""A perceptual distance without weights."""

from torch import nn


class Distance(nn.Module):
    """Stands for LPIPS: the mean absolute difference of each frame."""

    def __init__(self, net, *, weights):
        super().__init__()

    def forward(self, *, reconstruction, target):
        return (reconstruction - target).abs().flatten(1).mean(1)
