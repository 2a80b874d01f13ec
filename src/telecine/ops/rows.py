"""Rows of frames over the ranks of a `ContextGroup`: split, gathered, averaged, and padded with the neighbours' rows.

Tensors are `(..., H, W)`. The whole of a tensor is the same on all ranks of the group, and so is its gradient, since
each rank computes the objective on whole clips. Gradients of rows are those of the sum of these equal losses:
`gather_rows` multiplies by the number of ranks, and `split_rows` divides by it. On each rank, a weight that is used on
rows then has a part of its gradient, and a weight that is used on whole tensors its whole gradient. Data-parallel
training averages both over the ranks: the mean is the gradient of one loss.

A frame is divided at rows of its latent, whose number the group knows while a network runs (`latent_rows`).
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from telecine.ops.pass_options import ContextGroup, pass_options


def rows_of_ranks(num_units: int, rows_per_unit: int, num_ranks: int) -> list[int]:
    """Return how many rows each rank has: whole units, one more on the first ranks if they do not divide evenly.

    Args:
        num_units: The parts of a frame that are not divided, such as the rows of its latent.
        rows_per_unit: Rows of each of them.
        num_ranks: Ranks of the group.
    """
    fewest, num_larger = divmod(num_units, num_ranks)
    sizes = []
    for rank in range(num_ranks):
        units = fewest + 1 if rank < num_larger else fewest
        sizes.append(units * rows_per_unit)
    return sizes


def split_rows(whole: Tensor) -> Tensor:
    """Return this rank's rows of `(..., H, W)`, which is the same on all ranks of the group."""
    group = pass_options().context_group
    if group.size == 1:
        return whole
    rows_per_unit = whole.shape[-2] // group.latent_rows
    sizes = rows_of_ranks(group.latent_rows, rows_per_unit, group.size)
    rows: Tensor = _SplitRows.apply(whole, sizes, group)
    return rows


def gather_rows(rows: Tensor) -> Tensor:
    """Return the whole of a tensor, on each rank, of this rank's rows `(..., h, W)`."""
    group = pass_options().context_group
    if group.size == 1:
        return rows
    whole: Tensor = _GatherRows.apply(rows, sizes_of_ranks(rows, group), group)
    return whole


def pad_rows(rows: Tensor, above: int, below: int) -> Tensor:
    """Pad with the nearest rows of the neighbours, and with zeros at the top and the bottom of the frame.

    Args:
        rows: This rank's rows, `(..., h, W)`.
        above: How many rows are added above them, at most as many as the rank above has.
        below: How many are added below them, at most as many as the rank below has.
    """
    if above == 0 and below == 0:
        return rows
    padded: Tensor = _PadRows.apply(rows, above, below, pass_options().context_group)
    return padded


def sizes_of_ranks(rows: Tensor, group: ContextGroup) -> list[int]:
    """Return how many rows each rank has of a tensor of which this rank has `rows`."""
    units_of_ranks = rows_of_ranks(group.latent_rows, 1, group.size)
    rows_per_unit = rows.shape[-2] // units_of_ranks[group.rank]
    return [units * rows_per_unit for units in units_of_ranks]


class _SplitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, sizes: list[int], group: ContextGroup) -> Tensor:
        ctx.sizes = sizes
        ctx.group = group
        return _rows_of(whole, sizes, group.rank).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor, None, None]:
        grad_whole = _gathered(grad_rows, ctx.sizes, ctx.group).div_(ctx.group.size)
        return grad_whole, None, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], group: ContextGroup) -> Tensor:
        ctx.sizes = sizes
        ctx.group = group
        return _gathered(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_whole: Tensor) -> tuple[Tensor, None, None]:
        group = ctx.group
        return group.size * _rows_of(grad_whole, ctx.sizes, group.rank), None, None


def _rows_of(whole: Tensor, sizes: list[int], rank: int) -> Tensor:
    return whole.narrow(-2, sum(sizes[:rank]), sizes[rank])


def _gathered(rows: Tensor, sizes: list[int], group: ContextGroup) -> Tensor:
    """Return the rows of all ranks; rows of other ranks are 0 without a process group."""
    most = max(sizes)
    # Ranks send tensors of one shape.
    padded = F.pad(rows, (0, 0, 0, most - rows.shape[-2])).contiguous()
    if group.process_group is None:
        parts = [torch.zeros_like(padded) for _ in sizes]
        parts[group.rank] = padded
    else:
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group.process_group)
    cut = [part.narrow(-2, 0, size) for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(cut, dim=-2)


class _PadRows(torch.autograd.Function):
    """Every rank pads alike: it sends its last `above` rows to the rank below, and its first `below` rows above."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, above: int, below: int, group: ContextGroup) -> Tensor:
        ctx.above = above
        ctx.below = below
        ctx.group = group
        first_rows = rows[..., :below, :]
        last_rows = rows[..., rows.shape[-2] - above :, :]
        rows_above, rows_below = _exchange(first_rows, last_rows, group)
        return torch.cat([rows_above, rows, rows_below], dim=-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_padded: Tensor) -> tuple[Tensor, None, None, None]:
        """Send the gradients of the neighbours' rows back to them, and add theirs to the rows that they were sent."""
        num_rows = grad_padded.shape[-2] - ctx.above - ctx.below
        sizes = [ctx.above, num_rows, ctx.below]
        grad_rows_above, grad_rows, grad_rows_below = grad_padded.split(sizes, dim=-2)
        grad_first, grad_last = _exchange(grad_rows_above, grad_rows_below, ctx.group)
        grad_rows = grad_rows.clone()
        grad_rows[..., : ctx.below, :] += grad_first
        grad_rows[..., num_rows - ctx.above :, :] += grad_last
        return grad_rows, None, None, None


def _exchange(to_above: Tensor, to_below: Tensor, group: ContextGroup) -> tuple[Tensor, Tensor]:
    """Send a tensor to each neighbour, and return those that the rank above and the rank below have sent.

    Args:
        to_above: `(..., n, W)`, of the same shape on all ranks; it may be empty.
        to_below: `(..., m, W)`, of the same shape on all ranks; it may be empty.
        group: The ranks.

    Returns:
        The rows from above, of the shape of `to_below`, and the rows from below, of the shape of `to_above`; 0 without
        a neighbour.
    """
    from_above = torch.zeros_like(to_below, memory_format=torch.contiguous_format)
    from_below = torch.zeros_like(to_above, memory_format=torch.contiguous_format)
    if group.process_group is None:
        return from_above, from_below
    operations: list[dist.P2POp] = []
    if group.rank > 0:
        operations += _send_and_receive(to_above, from_above, group.rank - 1, group.process_group)
    if group.rank < group.size - 1:
        operations += _send_and_receive(to_below, from_below, group.rank + 1, group.process_group)
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    return from_above, from_below


def _send_and_receive(
    sent: Tensor, received: Tensor, rank: int, process_group: dist.ProcessGroup
) -> list[dist.P2POp]:
    """Return the operations that exchange tensors with a rank of the group; none for empty ones."""
    peer = dist.get_global_rank(process_group, rank)
    operations = []
    if sent.numel() > 0:
        operations.append(dist.P2POp(dist.isend, sent.contiguous(), peer, process_group))
    if received.numel() > 0:
        operations.append(dist.P2POp(dist.irecv, received, peer, process_group))
    return operations
