"""The processes of `torchrun` that share one evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from telecine.base.devices import pick_device

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process' place among those that share the work."""

    rank: int = 0
    """The index of this process."""
    world_size: int = 1
    """The number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return this process' device. On a machine with several GPUs, each process gets a different one.

        Raises:
            ValueError: This machine has no such device.
        """
        device = pick_device(name)
        if device.type != "cuda" or self.world_size == 1:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def gather(self, items: list[Item]) -> list[Item]:
        """Return the items of all processes, in rank order, on every process."""
        if self.world_size == 1:
            return items
        gathered: list[list[Item]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]


@contextmanager
def process_group() -> Iterator[Processes]:
    """Use the current process group, or initialize one under `torchrun` and destroy it at the end.

    The backend is gloo on every device, because only Python objects are exchanged.
    """
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
        try:
            yield Processes(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Processes()
