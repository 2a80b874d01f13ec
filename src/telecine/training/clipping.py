"""Gradients scaled down to a largest norm, whether they are whole or sharded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from telecine.training.sharding import gathered, local_part

# As PyTorch's `clip_grad_norm_` has it.
EPSILON = 1e-6


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of `parameters` so that their common 2-norm is at most `max_norm`; return what it was.

    As `torch.nn.utils.clip_grad_norm_`, which cannot take whole and sharded gradients together. Where some are
    sharded, every process has to call this.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = total_norm(gradients)
    torch._foreach_mul_([local_part(g) for g in gradients], (max_norm / (norm + EPSILON)).clamp(max=1.0))
    return norm


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the common 2-norm of whole and sharded tensors; where some are sharded, every process has to call this."""
    kinds = ([x for x in tensors if isinstance(x, DTensor)], [x for x in tensors if not isinstance(x, DTensor)])
    norms = [gathered(nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
