"""Averages over the ranks of a process group."""

from torch import Tensor
from torch import distributed as dist


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` over the ranks of the default process group, or `tensor` if there is none."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def with_averaged_gradient(parameter: Tensor) -> Tensor:
    """Return the parameter's value; its gradient is averaged over ranks before it reaches the parameter."""
    value = parameter * 1
    if value.requires_grad:
        value.register_hook(average_over_ranks)
    return value
