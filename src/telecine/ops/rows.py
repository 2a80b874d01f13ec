"""Rows of frames over the ranks of a `ContextGroup`: split, gathered, and padded with those of the neighbours.

Tensors are `(..., H, W)`. The whole of a tensor is the same on all ranks of the group, and so is its gradient, since
each rank computes the objective on whole clips. Gradients of rows are those of the sum of these equal losses:
`gather_rows` multiplies by the number of ranks, and `split_rows` divides by it. A weight that is used on rows then has
on each rank a part of its gradient, a weight that is used on whole tensors all of it, and of both the mean over the
ranks is the gradient of one loss, as data-parallel training averages it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from telecine.ops.ranks import ContextGroup, context_group


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


def split_rows(whole: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return this rank's rows of a tensor.

    Args:
        whole: `(..., H, W)`, the same on all ranks of the group.
        sizes: The rows of each rank.
    """
    rows: Tensor = _SplitRows.apply(whole, sizes, context_group())
    return rows


def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the whole of a tensor, on each rank.

    Args:
        rows: This rank's rows, `(..., h, W)`.
        sizes: The rows of each rank.
    """
    whole: Tensor = _GatherRows.apply(rows, sizes, context_group())
    return whole


def pad_rows(rows: Tensor, above: int, below: int) -> Tensor:
    """Pad with the nearest rows of the neighbours, and with zeros at the top and the bottom of the frame.

    Args:
        rows: This rank's rows, `(..., h, W)`.
        above: How many rows are added above them, at most those of the rank above.
        below: How many are added below them, likewise.
    """
    if above == 0 and below == 0:
        return rows
    padded: Tensor = _PadRows.apply(rows, above, below, context_group())
    return padded


class _SplitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, sizes: Sequence[int], group: ContextGroup) -> Tensor:
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
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], group: ContextGroup) -> Tensor:
        ctx.sizes = sizes
        ctx.group = group
        return _gathered(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_whole: Tensor) -> tuple[Tensor, None, None]:
        group = ctx.group
        return group.size * _rows_of(grad_whole, ctx.sizes, group.rank), None, None


class _PadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, above: int, below: int, group: ContextGroup) -> Tensor:
        ctx.above = above
        ctx.below = below
        ctx.group = group
        num_rows = rows.shape[-2]
        # Each rank is padded alike: the one above gets this rank's first rows to add below its own.
        first = rows.narrow(-2, 0, below)
        last = rows.narrow(-2, num_rows - above, above)
        rows_above, rows_below = _exchange(
            to_above=first,
            to_below=last,
            num_from_above=above,
            num_from_below=below,
            group=group,
        )
        return torch.cat([rows_above, rows, rows_below], dim=-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_padded: Tensor) -> tuple[Tensor, None, None, None]:
        above = ctx.above
        below = ctx.below
        num_rows = grad_padded.shape[-2] - above - below
        grad_above = grad_padded.narrow(-2, 0, above)
        grad_below = grad_padded.narrow(-2, above + num_rows, below)
        # Gradients go back where rows came from: the rank above has used the first `below` rows of this one.
        grad_first, grad_last = _exchange(
            to_above=grad_above,
            to_below=grad_below,
            num_from_above=below,
            num_from_below=above,
            group=ctx.group,
        )
        grad_rows = grad_padded.narrow(-2, above, num_rows).clone()
        grad_rows.narrow(-2, 0, below).add_(grad_first)
        grad_rows.narrow(-2, num_rows - above, above).add_(grad_last)
        return grad_rows, None, None, None


def _rows_of(whole: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
    return whole.narrow(-2, sum(sizes[:rank]), sizes[rank])


def _gathered(rows: Tensor, sizes: Sequence[int], group: ContextGroup) -> Tensor:
    """Return the rows of all ranks; those of other ranks are 0 without a process group."""
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


def _exchange(
    *,
    to_above: Tensor,
    to_below: Tensor,
    num_from_above: int,
    num_from_below: int,
    group: ContextGroup,
) -> tuple[Tensor, Tensor]:
    """Send rows to both neighbours, and return theirs; zeros where there is no neighbour.

    Args:
        to_above: For the rank above, `(..., n, W)`; empty if it needs none.
        to_below: For the rank below, likewise.
        num_from_above: The rows that the rank above sends.
        num_from_below: Those that the rank below sends.
        group: The ranks.
    """
    *others, _, width = to_above.shape
    from_above = to_above.new_zeros(*others, num_from_above, width)
    from_below = to_above.new_zeros(*others, num_from_below, width)
    process_group = group.process_group
    if process_group is None:
        return from_above, from_below
    messages: list[dist.P2POp] = []
    if group.rank > 0:
        peer = dist.get_global_rank(process_group, group.rank - 1)
        messages += _messages(to_above, from_above, peer, process_group)
    if group.rank < group.size - 1:
        peer = dist.get_global_rank(process_group, group.rank + 1)
        messages += _messages(to_below, from_below, peer, process_group)
    if messages:
        for work in dist.batch_isend_irecv(messages):
            work.wait()
    return from_above, from_below


def _messages(
    sent: Tensor, received: Tensor, peer: int, process_group: dist.ProcessGroup
) -> list[dist.P2POp]:
    messages = []
    if sent.numel() > 0:
        messages.append(dist.P2POp(dist.isend, sent.contiguous(), peer, process_group))
    if received.numel() > 0:
        messages.append(dist.P2POp(dist.irecv, received, peer, process_group))
    return messages
