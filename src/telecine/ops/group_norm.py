"""Group normalisation (arXiv:1803.08494) of clips whose rows are divided over ranks, with statistics of all rows."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from telecine.ops.pass_options import ContextGroup, pass_options
from telecine.ops.rows import sizes_of_ranks


def group_norm_of_rows(
    rows: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Return this rank's rows of `torch.nn.functional.group_norm` of whole clips. It cannot be differentiated twice.

    Args:
        rows: This rank's rows, `(B, C, T, h, W)`.
        num_groups: Groups of channels.
        weight: `(C,)`.
        bias: `(C,)`.
        eps: Added to the variance.
    """
    if torch.is_autocast_enabled(rows.device.type):
        rows = rows.float()  # as autocast computes `group_norm`
    group = pass_options().context_group
    sizes = sizes_of_ranks(rows, group)
    share = sizes[group.rank] / sum(sizes)
    normed: Tensor = _GroupNormOfRows.apply(rows, num_groups, weight, bias, eps, share, group)
    return normed


class _GroupNormOfRows(torch.autograd.Function):
    """With `u = (x - mean) / std`, return `weight * u + bias`; `share` is the fraction of rows that this rank has."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        num_groups: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        share: float,
        group: ContextGroup,
    ) -> Tensor:
        x = _in_groups(rows, num_groups)
        wide = torch.promote_types(rows.dtype, torch.float32)
        # The mean of all rows first, and then their squared distance from it: the variance does not cancel out.
        mean = _sum_over_ranks(share * x.mean(dim=(2, 3), keepdim=True, dtype=wide), group)
        squares = (x - mean).square_()
        variance = _sum_over_ranks(share * squares.mean(dim=(2, 3), keepdim=True), group)
        inverse_std = torch.rsqrt(variance + eps)
        ctx.save_for_backward(rows, weight, mean, inverse_std)
        ctx.share = share
        ctx.group = group
        scale = inverse_std * _by_group(weight, num_groups)
        shift = _by_group(bias, num_groups) - mean * scale
        return torch.addcmul(shift, x, scale).view(rows.shape).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """With `g` the gradient of `u`, return `(g - mean(g) - u mean(g u)) / std`, with means over all rows."""
        rows, weight, mean, inverse_std = ctx.saved_tensors
        num_groups = mean.shape[1]
        unit = (_in_groups(rows, num_groups) - mean).mul_(inverse_std)
        grad = _in_groups(grad_output, num_groups)
        grad_of_bias = grad.sum(dim=3)
        grad_of_weight = (grad * unit).sum(dim=3)
        # Means over the channels of a group and their positions.
        by_group = weight.view(1, num_groups, -1)
        num_values = unit[0, 0].numel()
        sums = torch.stack([(by_group * grad_of_bias).sum(2), (by_group * grad_of_weight).sum(2)])
        means = _sum_over_ranks(sums * (ctx.share / num_values), ctx.group)
        mean_grad, mean_product = means[..., None, None]
        grad_unit = grad * _by_group(weight, num_groups)
        grad_rows = (grad_unit - mean_grad).sub_(unit.mul_(mean_product)).mul_(inverse_std)
        return (
            grad_rows.view(rows.shape).to(rows.dtype),
            None,
            grad_of_weight.sum(0).flatten().to(weight.dtype),
            grad_of_bias.sum(0).flatten().to(weight.dtype),
            None,
            None,
            None,
        )


def _in_groups(x: Tensor, num_groups: int) -> Tensor:
    """Return `(B, C, ...)` as `(B, groups, channels of a group, positions)`."""
    return x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, -1)


def _by_group(weight: Tensor, num_groups: int) -> Tensor:
    """Return `(C,)` as `(1, groups, channels of a group, 1)`."""
    return weight.view(1, num_groups, -1, 1)


def _sum_over_ranks(values: Tensor, group: ContextGroup) -> Tensor:
    """Return the sum over the ranks of a group; without a process group, what all ranks have if they are alike."""
    if group.process_group is None:
        return values * group.size
    dist.all_reduce(values, group=group.process_group)
    return values
