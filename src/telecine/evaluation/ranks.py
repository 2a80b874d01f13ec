"""One evaluation shared by the processes that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from telecine.devices import DeviceName, pick_device


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work."""

    rank: int = 0
    """The number of this one."""
    count: int = 1
    """How many there are."""

    @property
    def is_first(self) -> bool:
        """Say whether this process is the one that prints and writes."""
        return self.rank == 0

    def device(self, name: DeviceName) -> torch.device:
        """Return this process' device; where there are several GPUs, each process of a machine takes its own.

        Raises:
            ValueError: this machine has no such device.
        """
        device = pick_device(name)
        if device.type != "cuda" or self.count == 1:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def gather(self, items: list[Any]) -> list[Any]:
        """Return the items of all processes, in the order of their numbers, to each of them."""
        if self.count == 1:
            return items
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the processes of `torchrun`, or use the process group that is there, and leave what was joined.

    Objects are exchanged, not gradients, so gloo serves on every device.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Ranks()
