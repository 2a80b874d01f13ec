"""Weights, gradients and optimizer states spread over processes (FSDP2), and the way to whole tensors and back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module) -> None:
    """Shard `model` in place over all processes: each block of it, and the rest together (FSDP2, arXiv:2304.11277).

    A block is whole only while it computes. Its weights become `DTensor`s, so optimizers are made afterwards.
    """
    from torch.distributed.fsdp import fully_shard

    for block in blocks(model):
        fully_shard(block)
    fully_shard(model)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost elements of a model's lists of modules that are called as one and own parameters."""
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from (item for item in child if any(True for _ in item.parameters()))
        else:
            yield from blocks(child)


def local_part(tensor: Tensor) -> Tensor:
    """Return this process' shard of a tensor, which shares its memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """Return a whole tensor; where it is sharded, every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scattered(tensor: Tensor, *, like: Tensor) -> Tensor:
    """Return a whole tensor, the same on every process, as `like` is: on its device, sharded or not."""
    moved = tensor.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


@torch.no_grad()
def copy_weights(source: nn.Module, *, into: nn.Module) -> None:
    """Copy parameters and buffers by name between two copies of a model, either of which may be sharded.

    Every process has to call this; `source`, where it is whole, must be the same on each.
    """
    given = source.state_dict()
    for name, tensor in into.state_dict().items():
        whole = gathered(given[name])
        tensor.copy_(scattered(whole, like=tensor))
