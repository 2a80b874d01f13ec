"""Activation checkpointing: a block's inside is computed again in the backward instead of being kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
            return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
        return block(x)
