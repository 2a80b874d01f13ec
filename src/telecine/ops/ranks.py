"""Averages over the ranks of a process group, and the ranks that have different clips."""

from torch import Tensor
from torch import distributed as dist

from telecine.ops.pass_options import pass_options


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


def num_data_ranks() -> int:
    """Return the number of ranks, or of groups of ranks, that have different clips."""
    # In a plan, this process alone stands for a group.
    return max(num_ranks() // pass_options().context_group.size, 1)


def data_rank() -> int:
    """Return the number of this rank's clips among those of `num_data_ranks`; 0 if it trains alone."""
    if num_ranks() == 1:
        return 0
    return dist.get_rank() // pass_options().context_group.size
