"""Weights and operations of a network, counted on tensors that have shapes but no values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from telecine.base.memory_counter import MemoryCounter
from telecine.tools.prune.channels import build_on_meta
from telecine.tools.prune.parts import Prunable
from telecine.tools.prune.widths import Configuration


@dataclass(frozen=True)
class Cost:
    """What a network needs."""

    weights: int
    flops: int
    """Operations to decode one clip, two for a multiplication and an addition."""


def cost_of(target: Prunable, config: Configuration, latent: Tensor) -> Cost:
    """Return what the network of a configuration needs to decode a latent, without any memory.

    Args:
        target: The part of an autoencoder.
        config: The configuration.
        latent: `(1, C, t, h, w)`, whose shape counts.
    """
    network = build_on_meta(target.build, config).eval()
    network.to("meta")  # its buffers, too
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    counter = MemoryCounter("decoding")
    # As the default device: some layers create tensors.
    with torch.device("meta"), torch.no_grad(), counter:
        target.decode(network, torch.zeros(latent.shape))
    return Cost(num_weights, counter.flops_by_part.total())
