"""A copy of tensors in the memory of the host, from which a checkpoint is written while training continues."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from telecine.training.distributed import full_tensor


class HostCopy:
    """Copies of tensors in the memory of the host.

    It keeps its memory for the next copy: to get that much anew takes longer than copying.

    Args:
        is_main: Whether this process keeps copies. The others only take part in gathering sharded tensors.
    """

    def __init__(self, *, is_main: bool) -> None:
        self.is_main = is_main
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the copies. A name has the same shape and dtype in each call.

        Sharded tensors are gathered, one at a time; every process has to call this.
        """
        before, self.tensors = self.tensors, {}
        for name, tensor in tensors.items():
            whole = full_tensor(tensor)
            if self.is_main:
                memory = before.get(name)
                if memory is None:
                    memory = torch.empty_like(whole, device="cpu", memory_format=torch.contiguous_format)
                self.tensors[name] = memory.copy_(whole)
