"""A copy of tensors in the memory of the host, from which a checkpoint is written while training continues."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from telecine.training.distributed import is_sharded, local_shard, offsets_of


class HostCopy:
    """Copies of tensors in the memory of the host; of sharded tensors, the shards of this process.

    It keeps its memory for the next copy: to get that much anew takes longer than copying.

    Args:
        is_main: Whether this process keeps copies of tensors that are not sharded.
        memory: Tensors to copy into, by name. Others get memory of their own.
    """

    def __init__(self, *, is_main: bool, memory: Mapping[str, Tensor] | None = None) -> None:
        self.is_main = is_main
        self.tensors = dict(memory or {})
        self.offsets: dict[str, list[int]] = {}
        """Where each copy begins in the whole tensor, in each dimension."""

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the copies. A name has the same shape and dtype in each call."""
        before, self.tensors, self.offsets = self.tensors, {}, {}
        for name, tensor in tensors.items():
            if not (self.is_main or is_sharded(tensor)):
                continue
            local = local_shard(tensor)
            memory = before.get(name)
            if memory is None:
                memory = torch.empty_like(local, device="cpu", memory_format=torch.contiguous_format)
            self.tensors[name] = memory.copy_(local)
            self.offsets[name] = offsets_of(tensor)
