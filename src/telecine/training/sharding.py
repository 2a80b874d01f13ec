"""Weights, gradients and optimizer states spread over processes (FSDP2), and the way to whole tensors and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from telecine.shapes import argument_error


def shard(model: nn.Module) -> None:
    """Shard `model` in place over all processes: each block of it, and the rest together (FSDP2, arXiv:2304.11277).

    A block is whole only while it computes. Its weights become `DTensor`s, so optimizers are made afterwards.

    Raises:
        ValueError: A weight is a single number without axes, as the scale of LTX's timesteps from 0.9.1 on.
    """
    from torch.distributed.fsdp import fully_shard

    for name, weight in model.named_parameters():
        if weight.ndim == 0:
            raise argument_error("sharding", "none for a model with a 0-d weight", name, "Train it without sharding.")
    for block in blocks(model):
        fully_shard(block)
        share_lists(block)
    # By default the rest would stay whole after a pass, and the next one would not see weights that changed in between,
    # as when the averaged weights were validated.
    fully_shard(model, reshard_after_forward=True)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost elements of a model's lists of modules that are called as one and own parameters."""
    for child in model.children():
        if not isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from blocks(child)
            continue
        for item in child.children():
            if not is_called(item):
                yield from blocks(item)
            elif any(True for _ in item.parameters()):
                yield item


def is_called(module: nn.Module) -> bool:
    """Say whether a module has a `forward`; one without only holds others, which are called one by one."""
    return type(module).forward is not nn.Module.forward


def share_lists(block: nn.Module) -> None:
    """Let the caller of a sharded block see what the block changes in the lists that it was called with.

    FSDP2 calls a block with copies of those lists that hold tensors of a graph. Wan's blocks keep frames in theirs from
    chunk to chunk, which would be lost without a word.
    """
    given: list[list[Any]] = []

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[:] = lists_among(args, kwargs)

    def hand_back(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for original, copied in zip(given, lists_among(args, kwargs), strict=True):
            original[:] = copied
        given.clear()

    block.register_forward_pre_hook(remember, prepend=True, with_kwargs=True)  # before FSDP2's own
    block.register_forward_hook(hand_back, with_kwargs=True)


def lists_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[Any]]:
    """Return those arguments of a call that are lists."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, list)]


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
