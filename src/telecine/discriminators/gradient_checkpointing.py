"""Discriminators whose blocks are recomputed in the backward, and whose weights are frozen for a while."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from telecine.ops.pass_options import differentiated_twice, pass_options


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Set `requires_grad` of all parameters to False inside the context, and restore each afterwards."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class GradientCheckpointing(nn.Module):
    """Base class of networks that can recompute the activations inside each block in the backward.

    Only the blocks' inputs and outputs are stored then, at the cost of one more forward in each backward (Chen et al.,
    arXiv:1604.06174). Values, gradients and gradients of gradients stay the same.
    """

    gradient_checkpointing = False

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations inside each block in the backward."""
        self.gradient_checkpointing = True

    def run_block(self, block: nn.Module, *args: Any) -> Any:
        """Return `block(*args)`."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return block(*args)
        is_twice = pass_options().is_differentiated_twice
        is_frozen = not any(parameter.requires_grad for parameter in block.parameters())

        def run(*args: Any) -> Any:
            # By the time of the backward parameters may require gradients, and the graph would be another one.
            as_before = frozen(block) if is_frozen else nullcontext()
            with differentiated_twice(is_twice), as_before:
                return block(*args)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)
