"""Data that several processes read: the first one logs what all of them would, and all have to have the same."""

import logging
from contextlib import AbstractContextManager

from torch import distributed as dist

from telecine.base.checks import argument_error
from telecine.base.terminal import quiet_logger


def log_in_first_process(rank: int) -> AbstractContextManager[None]:
    """Let all processes but the first one, of number 0, log errors alone: they read the same data."""
    return quiet_logger("telecine", logging.NOTSET if rank == 0 else logging.ERROR)


def check_same_data(data: object, name: str) -> None:
    """Check that all processes have the same data. Each process of the default group has to call this.

    Args:
        data: What identifies the data of this process.
        name: What the error calls the data.

    Raises:
        ValueError: In every process, if one has other data than the first.
    """
    data_of_ranks: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(data_of_ranks, data)
    others = []
    for rank, data_of_rank in enumerate(data_of_ranks):
        if data_of_rank != data_of_ranks[0]:
            others.append(str(rank))
    if others:
        got = f"other {name} in process {', '.join(others)} than in process 0"
        remedy = "Copy it to all machines, or to a shared disk; `telecine data` says which files a machine cannot use. "
        remedy += "If it is at addresses and was changed, run the same command again."
        raise argument_error("data", "the same in all processes", got, remedy)
