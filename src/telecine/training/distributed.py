"""The processes that train together: their start, their communication; sharding over them (FSDP2)."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn
from torch import distributed as dist
from torch._utils import _take_tensors
from torch.utils._pytree import tree_map_only

from telecine.base.checks import argument_error
from telecine.base.randomness import seed_of
from telecine.ops.checkpoint_call import CheckpointedCall, overwrite
from telecine.ops.pass_options import WHOLE_CLIPS, ContextGroup, pass_options, set_pass_options
from telecine.ops.ranks import data_rank, num_ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
# The scheme of the URL by which the processes find each other, see `_rendezvous`.
_SCHEME = "telecine"
_POLL_SECONDS = 0.1
_FOREVER = timedelta(days=365)
# Gradients are averaged in buckets of this size, as a message for each small weight costs more latency than bytes.
_BUCKET_BYTES = 25 * 2**20


def rank() -> int:
    """Return the rank of this process; 0 if it trains alone."""
    return dist.get_rank() if num_ranks() > 1 else 0


def _rendezvous(
    url: str, timeout: timedelta = _FOREVER, **options: object
) -> Iterator[tuple[dist.Store, int, int]]:
    """Find the other processes as "env://" of PyTorch does, with separate keys in their store for each restart.

    From version 2.4 on, `torchrun` keeps the store across restarts, and with it the old addresses
    (https://github.com/pytorch/pytorch/issues/135712). The number of a restart is the same everywhere on one machine
    only; on several, `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` gives each restart its own store.
    """
    store, rank, num_ranks = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    yield store, rank, num_ranks


@cache
def _register_rendezvous() -> None:
    """Tell PyTorch the scheme by which the processes find each other, once in a process."""
    if dist.is_available():
        dist.register_rendezvous_handler(_SCHEME, _rendezvous)


def process_group_settings(timeout: float) -> InitProcessGroupKwargs:
    """Return Accelerate's settings of the process group, in which a process waits `timeout` seconds for the others."""
    _register_rendezvous()
    return InitProcessGroupKwargs(init_method=f"{_SCHEME}://", timeout=timedelta(seconds=timeout))


def destroy_process_group_at_exit() -> None:
    """If the processes have no group yet, destroy the one that they get when the interpreter exits.

    Until then, further runs and evaluations use it. A group that the user has made is left to the user.
    """
    if dist.is_available() and not dist.is_initialized():
        atexit.unregister(_destroy_process_group)  # at most once
        atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def enter_context_group(size: int, timeout: float) -> None:
    """Let groups of `size` consecutive processes share their clips, after they have left the group of before.

    Every process has to call this.

    Args:
        size: Processes of a group, which divides the number of processes; 1 lets each have its own clips.
        timeout: Seconds that a process waits for the others of its group.
    """
    leave_context_group()
    group = WHOLE_CLIPS
    if size > 1:
        process_group, _ = dist.new_subgroups(size, timeout=timedelta(seconds=timeout))
        group = ContextGroup(size, dist.get_rank(process_group), process_group)
    set_pass_options(context_group=group)


def leave_context_group() -> None:
    """Let each process have its own clips again."""
    process_group = pass_options().context_group.process_group
    set_pass_options(context_group=WHOLE_CLIPS)
    if process_group is not None:
        dist.destroy_process_group(process_group)


def describe_processes(accelerator: Accelerator, *, sharding: str) -> list[str]:
    """Return lines for the console: the device, the number of processes, the sharding, the precision."""
    line = f"computing on {accelerator.device.type}"
    if accelerator.num_processes > 1:
        line += f" in each of {accelerator.num_processes} processes"
    if pass_options().context_group.size > 1:
        line += f", {pass_options().context_group.size} for each clip"
    if sharding != "none":
        line += f", weights sharded by {sharding}"
    lines = [f"{line}, mixed precision: {accelerator.mixed_precision}"]
    is_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if is_on_cpu and "MASTER_ADDR" in os.environ and num_ranks() == 1:
        lines.append(
            "`accelerate launch --cpu` starts one process for any --num_processes; use `torchrun` instead"
        )
    return lines


@contextmanager
def barrier_without_time_limit() -> Iterator[Callable[[], None]]:
    """Yield a barrier without time limit, in which signals are handled. The block, which all enter, ends with one."""
    if num_ranks() == 1:
        yield lambda: None
        return
    group = dist.new_group(backend="gloo", timeout=_FOREVER)

    def wait_for_everyone() -> None:
        work = dist.barrier(group, async_op=True)
        while not work.is_completed():  # in `work.wait()` Python cannot handle a signal
            time.sleep(_POLL_SECONDS)
        work.wait()  # raises its error

    try:
        yield wait_for_everyone
        wait_for_everyone()
    finally:
        dist.destroy_process_group(group)


def on_first_process(call: Callable[[], T], accelerator: Accelerator) -> T:
    """Call a function in the first process only, and return its result, or raise its error, in every process."""
    outcomes: list[Any] = [None]
    if accelerator.is_main_process:
        outcomes = [_outcome_of(call)]
    broadcast_object_list(outcomes)
    return _result_of(outcomes[0])


def on_every_process(call: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Call a function in every process of a group, and return all results, or raise the first error, in each."""
    if group is None:  # this process is alone
        return [call()]
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, _outcome_of(call), group)
    return [_result_of(outcome) for outcome in outcomes]


def _outcome_of(call: Callable[[], T]) -> T | Exception:
    try:
        return call()
    except (ValueError, OSError, RuntimeError) as error:
        return error


def _result_of(outcome: T | Exception) -> T:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def all_gather(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, in order of rank. They must have the same shape and dtype."""
    if num_ranks() == 1:
        return [tensor]
    tensors = [torch.empty_like(tensor) for _ in range(num_ranks())]
    dist.all_gather(tensors, tensor.contiguous())
    return tensors


def any_rank(value: bool, device: torch.device) -> bool:
    """Return whether `value` is true on at least one process. Every process gets the same answer."""
    if num_ranks() == 1:
        return value
    return any(all_gather(torch.tensor(float(value), device=device)))


def broadcast_module(module: nn.Module) -> None:
    """Copy the parameters and buffers of the first process to all others."""
    if num_ranks() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor.detach(), src=0)


def average_gradients(
    parameters: Iterable[nn.Parameter], *, bucket_bytes: int = _BUCKET_BYTES
) -> None:
    """Replace gradients by their means over the processes; one that only some of these have is 0 in the others.

    Args:
        parameters: The parameters, in the same order in each process.
        bucket_bytes: About how many bytes of gradients are averaged at once.
    """
    if num_ranks() == 1:
        return
    parameters = list(parameters)
    has_gradient = [float(parameter.grad is not None) for parameter in parameters]
    num_ranks_with = torch.tensor(has_gradient, device=parameters[0].device)
    dist.all_reduce(num_ranks_with)
    gradients = []
    for parameter, count in zip(parameters, num_ranks_with.tolist(), strict=True):
        if count == 0:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _take_tensors(gradients, bucket_bytes):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= num_ranks()
        means = flat.split([gradient.numel() for gradient in bucket])
        for gradient, mean in zip(bucket, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def shard(model: nn.Module) -> None:
    """Shard `model` in place over all processes (FSDP2, arXiv:2304.11277), so that parameters become `DTensor`s.

    Raises:
        ValueError: A weight has no dimension to split.
    """
    from torch.distributed.fsdp import fully_shard

    for name, weight in model.named_parameters():
        if weight.ndim == 0:  # such as the timestep scale of LTX 0.9.1 and later
            raise argument_error(
                "sharding", "none for a model with a 0-d weight", name, "Train it without sharding."
            )
    for block in fsdp_blocks(model):
        block.register_forward_hook(_copy_views)  # before FSDP2's own hook
        fully_shard(block)
        hooks = _CacheHooks()
        # Before FSDP2's own hook.
        block.register_forward_pre_hook(hooks.before, prepend=True, with_kwargs=True)
        block.register_forward_hook(hooks.after, with_kwargs=True)
    model.register_forward_hook(_copy_views)
    # By default FSDP2 keeps the root's weights gathered after a forward pass. The next pass would then miss weights
    # that changed in between, for example when validation swaps in the averaged weights.
    fully_shard(model, reshard_after_forward=True)


def _copy_views(module: nn.Module, args: tuple[object, ...], output: Any) -> Any:
    """Return a block's output with a copy in place of a view; a forward hook.

    FSDP2 gathers a block's weights for the backward in a hook of its output. An operation in place on a view drops that
    hook, and gradients are wrong.
    """
    return tree_map_only(Tensor, _copy_view, output)


def _copy_view(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.requires_grad and tensor._is_view() else tensor


def fsdp_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules with a `forward` and weights inside a model's `ModuleList`s and `Sequential`s."""
    for child in model.children():
        if not isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from fsdp_blocks(child)
            continue
        for item in child.children():
            # A container, whose parts are called one by one.
            if type(item).forward is nn.Module.forward:
                yield from fsdp_blocks(item)
            elif any(True for _ in item.parameters()):
                yield item


class _CacheHooks:
    """Copies a sharded block's changes to the lists and dicts among its arguments back to the caller's.

    FSDP2 calls a block with copies of these if they hold tensors with a graph. Causal models keep frames from chunk to
    chunk in them, Wan in a list and `CausalVAE` in a dict; without these hooks they would silently stay empty.
    """

    def __init__(self) -> None:
        self._callers: list[Any] = []

    def before(self, module: Any, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Remember the caller's lists and dicts; a forward pre-hook."""
        self._callers = _caches_in(args, kwargs)
        call: CheckpointedCall | None = pass_options().checkpointed_call
        # Older PyTorch recomputes a second chunk with sharded weights.
        if call and not call.is_first_run:
            module.unshard()

    def after(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        """Copy the changes of the block's copies; a forward hook."""
        for original, copied in zip(self._callers, _caches_in(args, kwargs), strict=True):
            overwrite(original, copied)
        self._callers = []


def _caches_in(args: tuple[object, ...], kwargs: dict[str, object]) -> list[Any]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, (list, dict))]


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is sharded over the processes."""
    from torch.distributed.tensor import DTensor  # slow to import

    return isinstance(tensor, DTensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process' shard of a sharded tensor, which shares its memory. Return other tensors unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every process has to call this. Return other tensors unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def copy_whole(whole: Tensor, *, into: Tensor) -> None:
    """Copy a whole tensor, the same in every process, into one that may be sharded."""
    from torch.distributed.tensor import distribute_tensor

    if is_sharded(into):
        # Without a source rank, each process cuts its shard out of its own tensor.
        whole = distribute_tensor(
            whole.to(into.device), into.device_mesh, into.placements, src_data_rank=None
        )
    into.copy_(whole)


def shard_offsets(tensor: Tensor) -> list[int]:
    """Return where the shard of this process begins in the whole tensor, in each dimension; 0 if it is not sharded."""
    if not is_sharded(tensor):
        return [0] * tensor.ndim
    # PyTorch's name for what distributed checkpoints need of a tensor.
    (chunk,) = tensor.__create_chunk_list__()
    return list(chunk.offsets)


def seed_other_processes(seed: int) -> None:
    """Let processes with other clips than the first draw other numbers inside the model, such as dropout masks."""
    if data_rank() > 0:
        torch.manual_seed(seed_of(seed, "process", data_rank()))
