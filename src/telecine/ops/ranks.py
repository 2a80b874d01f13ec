"""Averages over the ranks of a process group, and the ranks that share a clip."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor
from torch import distributed as dist


def num_ranks() -> int:
    """Return the number of ranks of the default process group; 1 if there is none."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over the ranks of the default process group."""
    if num_ranks() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / num_ranks()


def with_averaged_gradient(parameter: Tensor) -> Tensor:
    """Return the parameter's value; its gradient is averaged over ranks before it reaches the parameter."""
    value = parameter * 1
    if value.requires_grad:
        value.register_hook(average_over_ranks)
    return value


class ContextGroup(NamedTuple):
    """Consecutive ranks that share each clip: each computes the autoencoder on a part of its rows."""

    size: int = 1
    """The number of ranks; 1 if each rank has whole clips."""
    rank: int = 0
    """The rank of this process among them. Rank 0 has the top of the frames."""
    process_group: dist.ProcessGroup | None = None
    """Through which they communicate. None sends nothing, as in a plan: rows of other ranks are 0."""
    latent_rows: int = 0
    """While a network computes rows of a clip: the rows of the clip's latent, which the ranks divide; else 0."""


_context_group = ContextGroup()


def context_group() -> ContextGroup:
    """Return the group of this process; see `set_context_group`."""
    return _context_group


def set_context_group(group: ContextGroup) -> None:
    """Let this process share clips with a group of ranks, until another group is set."""
    global _context_group
    _context_group = group


@contextmanager
def using_context_group(group: ContextGroup) -> Iterator[None]:
    """Set a group inside a `with`."""
    before = context_group()
    set_context_group(group)
    try:
        yield
    finally:
        set_context_group(before)


def num_data_ranks() -> int:
    """Return the number of ranks, or of groups of ranks, that have different clips."""
    # In a plan, this process alone stands for a group.
    return max(num_ranks() // context_group().size, 1)


def data_rank() -> int:
    """Return the number of this rank's clips among those of `num_data_ranks`; 0 if it trains alone."""
    if num_ranks() == 1:
        return 0
    return dist.get_rank() // context_group().size
