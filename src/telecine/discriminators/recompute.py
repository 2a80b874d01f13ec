"""Activation checkpointing: a block's inside is computed again in the backward instead of being kept."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from telecine.discriminators.frozen import frozen
from telecine.ops.double_backward import differentiated_twice, is_twice


class Recomputing(nn.Module):
    """A network of blocks of which only inputs and outputs are kept for the backward, if asked.

    As in Chen et al., arXiv:1604.06174: less memory for one more forward pass in each backward. Values and gradients
    stay the same, those of a gradient (as a penalty takes them) included.
    """

    gradient_checkpointing = False

    def enable_gradient_checkpointing(self) -> None:
        """Compute the inside of each block again in the backward."""
        self.gradient_checkpointing = True

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return `block(x)`."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            contexts = partial(_contexts, block)
            return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return block(x)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's two forwards: one that was frozen in the first is so in the second.

    By the time of the backward the parameters may require gradients again, and the graph would be another.
    """
    was_frozen = not any(parameter.requires_grad for parameter in block.parameters())
    return nullcontext(), _AsBefore(block, frozen=was_frozen, twice=is_twice())


class _AsBefore(AbstractContextManager[None]):
    """The circumstances of a block's first forward, entered anew for each backward through a graph that is kept."""

    def __init__(self, block: nn.Module, *, frozen: bool, twice: bool) -> None:
        self.block, self.frozen, self.twice = block, frozen, twice

    def __enter__(self) -> None:
        self.entered = ExitStack()
        self.entered.enter_context(differentiated_twice(self.twice))
        if self.frozen:
            self.entered.enter_context(frozen(self.block))

    def __exit__(self, *error: Any) -> None:
        self.entered.close()
