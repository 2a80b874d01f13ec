"""The moving average of the autoencoder's weights, which is what gets evaluated and shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from telecine.training.sharding import local_part


class MovingAverage:
    """Weights that follow a model's with `decay` at every `update()`.

    Early on the decay is smaller, `(1 + n) / (10 + n)` after `n` updates, so that the initial weights are soon
    forgotten; the first update copies. With `decay` 0 the average equals the model. Only what is trained is averaged,
    and there is no second module: `applied()` puts the averages in the model's place for a while. Of sharded weights
    each process averages its shard.

    Args:
        model: Whose parameters are followed.
        decay: From 0 to below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.current = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.averages = {name: weight.detach().clone() for name, weight in self.current.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights in."""
        num = self.num_updates
        decay = min(self.decay, (1 + num) / (10 + num)) if num else 0.0
        averages, current = ([local_part(x) for x in of.values()] for of in (self.averages, self.current))
        torch._foreach_lerp_(averages, current, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights inside the `with` block, and its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.averages.items():
            mine, theirs = local_part(average), local_part(self.current[name])
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)
