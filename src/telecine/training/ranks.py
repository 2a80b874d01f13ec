"""What processes that train together tell each other, beside what a data-parallel wrapper does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

# Gradients travel in pieces of this size: one message for each small weight would take longer to start than to send.
BUCKET_BYTES = 25 * 2**20


def num_ranks() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_left_alone() -> bool:
    """Say whether `accelerate launch --cpu` was asked for several processes: it starts one, told where to meet."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return on_cpu and "MASTER_ADDR" in os.environ and num_ranks() == 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each parameter's gradient by its mean over the processes; parameters without one are passed over.

    Every process must have gradients of the same parameters.
    """
    if num_ranks() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= num_ranks()
        pieces = flat.split([gradient.numel() for gradient in bucket])
        for gradient, piece in zip(bucket, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def same_on_all_ranks(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one."""
    if num_ranks() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor.detach(), src=0)


def any_rank(value: bool, device: torch.device) -> bool:
    """Say whether `value` is true on any process, the same on all of them."""
    flags = all_gathered(torch.tensor(float(value), device=device)) if num_ranks() > 1 else [value]
    return any(flags)


def all_gathered(tensor: Tensor) -> list[Tensor]:
    """Return a tensor of every process, in the order of their ranks; all of one shape and type."""
    if num_ranks() == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(num_ranks())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients in groups of one type and of `BUCKET_BYTES` or little more."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size >= BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket
