"""Communication between the processes of a run, and sharding of the autoencoder over them (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch import distributed as dist

from telecine.base.checks import argument_error
from telecine.ops.checkpointing import overwrite
from telecine.settings import TrainConfig
from telecine.training.process_group import num_ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
# Gradients are averaged in buckets of this size: one message for each small weight costs more in latency than in bytes.
BUCKET_BYTES = 25 * 2**20


def describe_processes(config: TrainConfig, accelerator: Accelerator) -> list[str]:
    """Return lines for the console: the device, the number of processes, the sharding, the precision."""
    processes = f" in each of {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    sharded = f", weights sharded by {config.sharding}" if config.sharding != "none" else ""
    lines = [f"computing on {accelerator.device.type}{processes}{sharded}, mixed precision: {config.mixed_precision}"]
    if launcher_started_one_process():
        lines.append("`accelerate launch --cpu` starts one process for any --num_processes; use `torchrun` instead")
    return lines


def launcher_started_one_process() -> bool:
    """Return whether `accelerate launch --cpu --num_processes N` started this run: it starts one process for any N."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return on_cpu and "MASTER_ADDR" in os.environ and num_ranks() == 1


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each parameter's gradient by its mean over the processes. Parameters without a gradient are skipped.

    The same parameters must have gradients on every process.
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


def broadcast_module(module: nn.Module) -> None:
    """Copy the parameters and buffers of the first process to all others."""
    if num_ranks() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor.detach(), src=0)


def any_rank(value: bool, device: torch.device) -> bool:
    """Return whether `value` is true on at least one process. Every process gets the same answer."""
    flags = all_gather(torch.tensor(float(value), device=device)) if num_ranks() > 1 else [value]
    return any(flags)


def on_first_process(call: Callable[[], T], accelerator: Accelerator) -> T:
    """Call a function in the first process only, and return its result, or raise its error, in every process."""
    outcome: list[T | ValueError | OSError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [call()]
        except (ValueError, OSError) as error:
            outcome = [error]
    broadcast_object_list(outcome)
    (result,) = outcome
    if isinstance(result, (ValueError, OSError)):
        raise result
    return cast(T, result)


def on_every_process(call: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Call a function in every process of a group, and return all results, or raise the first error, in each of them.

    Args:
        call: The function.
        group: The processes; None for this process alone.
    """
    if group is None:
        return [call()]
    outcome: T | BaseException
    try:
        outcome = call()
    except (ValueError, OSError, RuntimeError) as error:
        outcome = error
    outcomes: list[T | BaseException | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, outcome, group)
    for each in outcomes:
        if isinstance(each, BaseException):
            raise each
    return cast("list[T]", outcomes)


def all_gather(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, in order of rank. They must have the same shape and dtype."""
    if num_ranks() == 1:
        return [tensor]
    tensors = [torch.empty_like(tensor) for _ in range(num_ranks())]
    dist.all_gather(tensors, tensor.contiguous())
    return tensors


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group consecutive gradients of one dtype until a group reaches `BUCKET_BYTES`."""
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


def shard(model: nn.Module) -> None:
    """Shard `model` in place over all processes (FSDP2, arXiv:2304.11277): each block, and the remaining weights.

    A block's weights are gathered only while it computes. Parameters become `DTensor`s, so create optimizers
    afterwards.

    Raises:
        ValueError: A weight has no dimensions, such as the timestep scale of LTX 0.9.1 and later.
    """
    from torch.distributed.fsdp import fully_shard

    for name, weight in model.named_parameters():
        if weight.ndim == 0:
            raise argument_error("sharding", "none for a model with a 0-d weight", name, "Train it without sharding.")
    for block in fsdp_blocks(model):
        fully_shard(block)
        _write_back_caches(block)
    # By default FSDP2 keeps the root's weights gathered after a forward pass. The next pass would then miss weights
    # that changed in between, for example when validation swaps in the averaged weights.
    fully_shard(model, reshard_after_forward=True)


def fsdp_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules inside a model's `ModuleList`s and `Sequential`s that have a `forward` and weights.

    A module without a `forward` is only a container whose parts are called one by one, so its parts are searched.
    """
    for child in model.children():
        if not isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from fsdp_blocks(child)
            continue
        for item in child.children():
            if type(item).forward is nn.Module.forward:
                yield from fsdp_blocks(item)
            elif any(True for _ in item.parameters()):
                yield item


def _write_back_caches(block: nn.Module) -> None:
    """Copy the changes that a sharded block makes to the lists and dicts among its arguments back to the caller's.

    FSDP2 calls a block with copies of these when they hold tensors with a graph. Causal models keep frames from chunk
    to chunk in them, Wan in a list and `CausalVAE` in a dict; without this hook they would silently stay empty.
    """
    callers: list[list[object] | dict[object, object]] = []

    def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        callers[:] = _cache_arguments(args, kwargs)

    def after(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        for original, copied in zip(callers, _cache_arguments(args, kwargs), strict=True):
            overwrite(original, copied)
        callers.clear()

    block.register_forward_pre_hook(before, prepend=True, with_kwargs=True)  # before FSDP2's own hook
    block.register_forward_hook(after, with_kwargs=True)


def _cache_arguments(
    args: tuple[object, ...], kwargs: Mapping[str, object]
) -> list[list[object] | dict[object, object]]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, (list, dict))]


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is sharded over the processes."""
    from torch.distributed.tensor import DTensor  # slow to import

    return isinstance(tensor, DTensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process' shard of a sharded tensor, which shares its memory. Return other tensors unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def offsets_of(tensor: Tensor) -> list[int]:
    """Return where this process' shard begins in the whole tensor, in each dimension; 0 if it is not sharded."""
    if not is_sharded(tensor):
        return [0] * tensor.ndim
    (chunk,) = tensor.__create_chunk_list__()  # PyTorch's name for what distributed checkpoints need of a tensor
    return list(chunk.offsets)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every process has to call this. Return other tensors unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def place_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Move a whole tensor, the same on every process, to the device of `other`, and shard it if `other` is sharded."""
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(other.device)
    return distribute_tensor(moved, other.device_mesh, other.placements) if is_sharded(other) else moved


@torch.no_grad()
def copy_weights(source: nn.Module, *, into: nn.Module) -> None:
    """Copy parameters and buffers by name between two copies of a model, either of which may be sharded.

    Every process has to call this. If `source` is not sharded, it must be the same on every process.
    """
    tensors = source.state_dict()
    for name, tensor in into.state_dict().items():
        whole = full_tensor(tensors[name])
        tensor.copy_(place_like(whole, tensor) if is_sharded(tensor) else whole)
